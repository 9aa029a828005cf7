"""Weight files written by several processes: the same bytes, whoever is killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pico
import pytest
import torch
from command_line import meristem
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import meristem as ms
from meristem.checkpoints import open_streamed, shares, write_model
from meristem.checkpoints.shards import Shards, lay_out, write_shards
from meristem.checkpoints.shares import Processes
from meristem.checkpoints.stored import StoredTensors

METHODS = {"width": ms.HyperCloning(width=2, noise=0.1), "depth": ms.Stacking(depth=2)}


def contents(directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in directory.iterdir() if ".safetensors" in f.name}


def write(source, out, method, processes=None, **options):
    growth = ms.Growth.of(open_streamed(str(source)), method, verify=False)
    write_model(growth.model, out, {}, max_shard_size="30KB", sources=[source], processes=processes, **options)


def layout(sizes):
    names = [f"model-{i}.safetensors" for i in range(len(sizes))]
    return Shards(dict.fromkeys(names, ()), {}, dict.fromkeys(names, b"h"), dict(zip(names, sizes, strict=True))), names


def test_shares_are_runs_of_files_of_about_equal_bytes():
    shards, names = layout([5, 5, 5, 5, 5, 5, 5, 5])
    assert shares.share(shards, 4) == [tuple(names[i : i + 2]) for i in (0, 2, 4, 6)]
    shards, names = layout([90, 5, 5])
    assert shares.share(shards, 2) == [(names[0],), (names[1], names[2])]
    assert shares.share(shards, 1) == [tuple(names)]
    assert [n for own in shares.share(shards, 7) for n in own] == names


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_several_processes_write_what_one_does(family, method, tmp_path):
    pico.build(family).save_pretrained(tmp_path / "small")
    write(tmp_path / "small", tmp_path / "one", METHODS[method])
    seen = []
    bar = {"bar": lambda total: contextlib.nullcontext(seen.append)}
    write(tmp_path / "small", tmp_path / "three", METHODS[method], Processes(3), **bar)
    assert len(contents(tmp_path / "one")) > 4
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    weights = [f.stat().st_size for f in (tmp_path / "one").glob("*.safetensors")]
    assert sum(seen) == sum(weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "small", "three"]


def test_ranks_that_are_started_elsewhere_write_their_share_and_the_first_takes_it_over(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    write(tmp_path / "small", tmp_path / "one", METHODS["width"])
    for rank in (2, 1):
        write(tmp_path / "small", tmp_path / "out", METHODS["width"], Processes(3, rank))
    (shared,) = tmp_path.glob(".out.shares-*")
    before = {f.name: f.stat().st_ino for f in shared.iterdir()}
    assert 0 < len(before) < len(contents(tmp_path / "one"))
    victim = sorted(before)[-1]
    (shared / victim).unlink()  # as a kill before its end would leave it
    write(tmp_path / "small", tmp_path / "out", METHODS["width"], Processes(3, 2))
    after = {f.name: f.stat().st_ino for f in shared.iterdir()}
    assert set(after) == set(before)
    assert {n for n in before if after[n] != before[n]} <= {victim}  # nobody wrote the others anew
    assert not (tmp_path / "out").exists()
    write(tmp_path / "small", tmp_path / "out", METHODS["width"], Processes(3, 0))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert not shared.exists()
    assert ms.verify(open_streamed(str(tmp_path / "small")), open_streamed(str(tmp_path / "out"))).holds


def test_what_another_growth_has_left_is_not_taken_over(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    write(tmp_path / "small", tmp_path / "out", METHODS["width"], Processes(2, 1, of="seed 0"))
    (old,) = tmp_path.glob(".out.shares-*")
    write(tmp_path / "small", tmp_path / "out", METHODS["width"], Processes(2, of="seed 1"))
    assert not old.exists()


def test_a_process_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    pico.build("llama").save_pretrained(tmp_path / "small")

    def broken(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shares, "write_shards", broken)
    with pytest.raises(ms.MeristemError, match="No space left on device"):
        write(tmp_path / "small", tmp_path / "out", METHODS["width"], Processes(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small"]


def test_thirty_kills_of_four_processes(tmp_path):
    worker = Path(__file__).parent / "killed_shares_worker.py"
    done = subprocess.run([sys.executable, str(worker), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["kills"] >= 30
    assert outcome["statuses"] == [0] * len(outcome["statuses"])
    assert outcome["identical"]
    assert outcome["rewritten"] == []  # a file that is whole is never written again
    assert outcome["left"] == ["one", "out", "small"]


def test_layers_that_are_copied_are_copied_by_the_kernel(tmp_path, monkeypatch):
    model = pico.build("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "small")
    ms.grow(model, METHODS["depth"], verify=False).save_pretrained(tmp_path / "expected", max_shard_size="30KB")
    growth = ms.Growth.of(open_streamed(str(tmp_path / "small")), METHODS["depth"], verify=False)
    monkeypatch.setattr(StoredTensors, "__getitem__", lambda *_: pytest.fail("a tensor was read"))
    write_model(growth.model, tmp_path / "big", {}, max_shard_size="30KB")
    assert contents(tmp_path / "big") == contents(tmp_path / "expected")

    def refused(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refused)
    write_model(growth.model, tmp_path / "by hand", {}, max_shard_size="30KB")
    assert contents(tmp_path / "by hand") == contents(tmp_path / "expected")


def test_a_source_that_becomes_shorter_is_no_copy(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    growth = ms.Growth.of(open_streamed(str(tmp_path / "small")), METHODS["depth"], verify=False)
    file = tmp_path / "small" / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(ms.MeristemError, match="became shorter"):
        write_model(growth.model, tmp_path / "big", {})
    assert not (tmp_path / "big").exists()


def test_the_flag(tmp_path, monkeypatch):
    pico.build("llama").save_pretrained(tmp_path / "small")
    done = meristem("grow", tmp_path / "small", tmp_path / "out", "--width", "2", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "meristem.json").read_text())["certificate"]["holds"]
    for names in shares.RANKS:
        monkeypatch.delenv(names[0], raising=False)
    for wrong in ("0", "-1", "many", "ranks"):
        with pytest.raises(ms.MeristemError, match="--processes"):
            Processes.parse(wrong)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Processes.parse("ranks") == Processes(4, 1)


def test_two_ranks_of_a_real_torchrun(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    words = ["grow", str(tmp_path / "small"), "OUT", "--width", "2", "--max-shard-size", "30KB", "--verify", "sample=2"]
    one = meristem(*(str(tmp_path / "one") if word == "OUT" else word for word in words))
    assert one.returncode == 0, one.stderr
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "meristem.cli.main",
    ]
    words = [str(tmp_path / "two") if word == "OUT" else word for word in words]
    done = subprocess.run([*launch, *words, "--processes", "ranks"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(contents(tmp_path / "one")) > 4
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert done.stdout.count("parameters, hypercloning") == 1  # the first rank says what was made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "small", "two"]


@pytest.mark.dist
def test_ranks_on_ray_write_what_one_process_does(tmp_path, monkeypatch):
    """The command starts a cluster of its own."""
    pytest.importorskip("ray")
    pico.build("llama").save_pretrained(tmp_path / "small")
    words = ["small", "--width", "2", "--max-shard-size", "30KB", "--no-verify"]
    monkeypatch.chdir(tmp_path)
    one = meristem("grow", *words[:1], "one", *words[1:])
    assert one.returncode == 0, one.stderr
    done = meristem("grow", *words[:1], "ray", *words[1:], "--processes", "ray:3")
    assert done.returncode == 0, done.stderr
    assert len(contents(tmp_path / "one")) > 4
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "ray", "small"]
    assert json.loads((tmp_path / "ray" / "meristem.json").read_text())["source"]["name"] == "small"


def descendants(pid: int) -> list[int]:
    """Processes that this one has started, and those that they have."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(further for child in children for further in descendants(child))]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.dist
def test_a_rank_on_ray_whose_worker_is_killed_goes_on(tmp_path):
    """The first worker that is at work is killed when it has begun a file; the result is that of one process."""
    pytest.importorskip("ray")
    config = LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=4, vocab_size=4000
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    words = ["grow", "small", "--width", "2", "--max-shard-size", "300KB", "--no-verify"]
    command = [sys.executable, "-m", "meristem.cli.main", *words[:2]]
    one = subprocess.run([*command, "one", *words[2:]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert one.returncode == 0, one.stderr
    killed = 0
    with subprocess.Popen([*command, "ray", *words[2:], "--processes", "ray:2"], cwd=tmp_path) as running:
        while running.poll() is None:
            ranks = [pid for pid in descendants(running.pid) if title(pid).startswith("ray::_rank")]
            begun = [pid for pid in ranks if list(tmp_path.glob(f".ray.shares-*/.{pid}.partial-*"))]
            if begun and not killed:
                os.kill(begun[0], signal.SIGKILL)
                killed = begun[0]
            time.sleep(0.002)
    assert running.returncode == 0
    assert killed
    assert len(contents(tmp_path / "one")) > 20
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "ray", "small"]


def test_a_file_that_another_rank_renames_meanwhile_is_no_error(tmp_path, monkeypatch):
    """A hidden file is listed, and has its last name before its size is asked for."""
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda place: [".12.partial-a", *listed(place)])
    shards = SimpleNamespace(files={"a": ()}, sizes={"a": 5})
    told = []
    shares.wait_for_all(tmp_path, shards, told.append, lambda: (tmp_path / "a").write_bytes(b"whole"))
    assert told == [5]


def test_a_rank_that_fails_elsewhere_ends_the_wait(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")

    def failed():
        raise ms.MeristemError("a rank on Ray failed: no space left")

    with pytest.raises(ms.MeristemError, match="no space left"):
        write(tmp_path / "small", tmp_path / "out", METHODS["width"], Processes(2, 0, watch=failed))
    assert not (tmp_path / "out").exists()


def test_a_piece_that_is_never_made_is_no_hole_in_a_file(tmp_path):
    layout = {"a": torch.empty(4, 2, device="meta"), "b": torch.empty(3, device="meta")}
    shards = lay_out(layout)
    pieces = [("a", ([0], torch.ones(2, 2))), ("b", ([0], torch.ones(3)))]
    with pytest.raises(AssertionError, match=r"16 bytes of model\.safetensors have not been made"):
        write_shards(tmp_path, shards, pieces)
    write_shards(tmp_path, shards, [*pieces, ("a", ([2], torch.ones(2, 2)))])
    assert all(bool((tensor == 1).all()) for tensor in load_file(tmp_path / "model.safetensors").values())
