"""Checkpoints at addresses: fetched whole, once, and again where they change; results uploaded whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pico
import pytest
import torch
from command_line import meristem
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

import meristem as ms
from meristem.checkpoints import open_model
from meristem.checkpoints.object_store import check_free, upload
from meristem.checkpoints.source import find_source
from meristem.cli.main import app

SHARED = Path(__file__).parents[3] / "shared/data/checkpoints/stories260K-llama"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MERISTEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path):
    """An empty object store in memory with a trained-looking model at memory://bucket/small."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    model: Any = pico.build("llama")
    model.save_pretrained(tmp_path / "small", max_shard_size="20KB")
    (tmp_path / "small" / "tokenizer.model").write_bytes(b"pieces")
    (tmp_path / "small" / "training_args.bin").write_bytes(b"a pickle")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "small"), "/bucket/small", recursive=True)
    yield memory
    MemoryFileSystem.store.clear()


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_model_at_an_address_is_grown_to_another_address(store, tmp_path):
    done = invoke("grow", "memory://bucket/small", "memory://bucket/big", "--width", 2)
    assert done.exit_code == 0, done.output
    assert "uploaded to memory://bucket/big" in done.output
    store.get("/bucket/big", str(tmp_path / "big"), recursive=True)
    from_disk = tmp_path / "beside"
    assert meristem("grow", tmp_path / "small", from_disk, "--width", 2).returncode == 0
    ours, theirs = open_model(str(tmp_path / "big")), open_model(str(from_disk))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert (tmp_path / "big" / "tokenizer.model").read_bytes() == b"pieces"
    record = json.loads((tmp_path / "big" / "meristem.json").read_text())
    assert record["source"]["name"] == "memory://bucket/small"
    assert record["source"]["sha256"] == json.loads((from_disk / "meristem.json").read_text())["source"]["sha256"]
    assert record["certificate"]["holds"]


def test_files_come_once_and_again_when_they_change(store, tmp_path, monkeypatch):
    fetched = []
    get_file = MemoryFileSystem.get_file
    monkeypatch.setattr(
        MemoryFileSystem, "get_file", lambda self, a, b, **k: (fetched.append(a), get_file(self, a, b, **k))[1]
    )
    first = find_source("memory://bucket/small")
    names = {Path(name).name for name in fetched}
    assert "training_args.bin" not in names
    assert fetched[0].endswith("config.json")
    assert len(names) == len(fetched) == len(list((tmp_path / "small").iterdir())) - 1
    fetched.clear()
    assert find_source("memory://bucket/small") == first
    assert fetched == []
    other: Any = pico.build("llama", seed=7)
    other.save_pretrained(tmp_path / "other", max_shard_size="20KB")
    shard = sorted(tmp_path.glob("other/model-*.safetensors"))[0]
    store.put_file(str(shard), f"/bucket/small/{shard.name}")
    store.rm_file("/bucket/small/tokenizer.model")
    again = find_source("memory://bucket/small")
    assert [Path(name).name for name in fetched] == [shard.name]
    assert (again.path / shard.name).read_bytes() == shard.read_bytes()
    assert not (again.path / "tokenizer.model").exists()


def test_what_changes_while_it_is_read_is_no_checkpoint(store, tmp_path, monkeypatch):
    get_file = MemoryFileSystem.get_file

    def meanwhile(self, source, target, **options):
        get_file(self, source, target, **options)
        if source.endswith("tokenizer.model"):
            store.pipe_file("/bucket/small/config.json", b"{}")

    monkeypatch.setattr(MemoryFileSystem, "get_file", meanwhile)
    with pytest.raises(ms.MeristemError, match=r"config\.json changed while it was read"):
        find_source("memory://bucket/small")


def test_a_kill_in_the_middle_of_fetching_costs_one_file(store, monkeypatch):
    get_file, fetched = MemoryFileSystem.get_file, []

    def killed(self, source, target, **options):
        if len(fetched) == 3:
            raise KeyboardInterrupt
        fetched.append(source)
        return get_file(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", killed)
    with pytest.raises(KeyboardInterrupt):
        find_source("memory://bucket/small")
    monkeypatch.setattr(
        MemoryFileSystem, "get_file", lambda self, a, b, **k: (fetched.append(a), get_file(self, a, b, **k))[1]
    )
    found = find_source("memory://bucket/small")
    assert len(fetched) == len(set(fetched))
    open_model(found)


def test_a_hostile_config_brings_nothing_else(store, tmp_path):
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    with store.open("/bucket/small/config.json", "w") as file:
        json.dump({**config, "auto_map": {"AutoConfig": "other/repo--x.Y"}}, file)
    with store.open("/bucket/small/x.py", "w") as file:
        file.write("raise SystemExit(3)")
    with pytest.raises(ms.MeristemError, match=r"memory://bucket/small contains its own code .*--trust-remote-code"):
        find_source("memory://bucket/small")
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.suffix in (".safetensors", ".py")) == []


def test_names_that_lead_out_are_refused(store, tmp_path):
    MemoryFileSystem.store["/bucket/small/../../stolen"] = MemoryFileSystem.store["/bucket/small/config.json"]
    with pytest.raises(ms.MeristemError, match="leads out of its directory"):
        find_source("memory://bucket/small")


def test_an_upload_that_fails_leaves_nothing(store, tmp_path, monkeypatch):
    put_file, places = MemoryFileSystem.put_file, []

    def full(self, source, target, **options):
        places.append(target)
        if len(places) == 3:
            raise OSError("no space in the bucket")
        return put_file(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", full)
    with pytest.raises(ms.MeristemError, match="memory://bucket/big cannot be written: no space in the bucket"):
        upload(tmp_path / "small", "memory://bucket/big")
    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    check_free("memory://bucket/big")
    upload(tmp_path / "small", "memory://bucket/big")
    places.clear()
    with pytest.raises(ms.MeristemError, match=r"holds .* files already"):
        check_free("memory://bucket/big")


def test_config_comes_last(store, tmp_path, monkeypatch):
    put_file, places = MemoryFileSystem.put_file, []
    monkeypatch.setattr(
        MemoryFileSystem, "put_file", lambda self, a, b, **k: (places.append(b), put_file(self, a, b, **k))[1]
    )
    upload(tmp_path / "small", "memory://bucket/big")
    assert places[-1] == "/bucket/big/config.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("grow", "memory://bucket/nothing", "OUT", "--width", 2), "memory://bucket/nothing is not a model directory: it holds no config.json"),
        (("grow", "nosuch://bucket/x", "OUT", "--width", 2), "the protocol 'nosuch' is not known"),
        (("grow", "memory://bucket/small", "memory://bucket/small", "--width", 2), "memory://bucket/small holds"),
        (("grow", "memory://bucket/small", "memory://bucket/new", "--width", 2, "--overwrite"), "--overwrite replaces directories"),
        (("grow", "memory://bucket/small", "memory://bucket/new", "--width", 2, "--processes", "ranks"), "all ranks share"),
        (("inspect", "s3://"), "s3://"),
    ],
)  # fmt: skip
def test_mistakes(store, tmp_path, arguments, message):
    arguments = [tmp_path / "out" if a == "OUT" else a for a in arguments]
    done = invoke(*arguments)
    assert isinstance(done.exception, ms.MeristemError), done.output
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()
    assert store.find("/bucket/new") == []


def test_other_commands_take_addresses(store, tmp_path):
    address = "memory://bucket/small"
    assert invoke("inspect", address).exit_code == 0
    done = invoke("fuse", address, tmp_path / "small", "memory://bucket/both")
    assert done.exit_code == 0, done.output
    assert store.exists("/bucket/both/config.json")
    assert invoke("average", address, tmp_path / "small", "memory://bucket/mean").exit_code == 0
    assert invoke("shrink", address, "memory://bucket/half", "--hidden-size", 16).exit_code == 0
    store.get("/bucket/half", str(tmp_path / "half"), recursive=True)
    assert open_model(str(tmp_path / "half")).config.hidden_size == 16
    assert invoke("grow", address, tmp_path / "dry", "--width", 2, "--dry-run").exit_code == 0
    assert not (tmp_path / "dry").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")
def test_a_trained_checkpoint_by_a_file_address(tmp_path):
    shutil.copytree(SHARED, tmp_path / "stories")
    done = meristem("grow", f"file://{tmp_path}/stories", f"file://{tmp_path}/grown", "--width", 2)
    assert done.returncode == 0, done.stderr
    assert meristem("verify", tmp_path / "stories", tmp_path / "grown").returncode == 0
