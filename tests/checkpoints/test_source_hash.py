"""The hash of a source, taken while it is read."""

from __future__ import annotations

import hashlib
import json
import time

import pico
import pytest
from command_line import meristem

import meristem as ms
from meristem.checkpoints import source_hash
from meristem.checkpoints.source import Source
from meristem.checkpoints.source_hash import hashing, source_record


def expected(directory) -> str:
    digest = hashlib.sha256()
    for name in sorted(f.name for f in directory.iterdir() if f.name == "config.json" or f.suffix == ".safetensors"):
        digest.update(name.encode() + (directory / name).read_bytes())
    return digest.hexdigest()


def test_it_is_that_of_the_files_and_a_growth_records_it(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small", max_shard_size="20KB")
    with hashing(Source("small", tmp_path / "small")) as running:
        assert running.result() == {"name": "small", "revision": None, "sha256": expected(tmp_path / "small")}
    done = meristem("grow", tmp_path / "small", tmp_path / "big", "--width", "2", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "big" / "meristem.json").read_text())["source"]["sha256"] == expected(
        tmp_path / "small"
    )


def test_it_waits_for_the_writing(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    monkeypatch.setattr(source_hash, "CHUNK", 10)
    monkeypatch.setattr(source_hash, "AHEAD", 20)
    read = []
    whole = source_record
    monkeypatch.setattr(
        source_hash, "source_record", lambda source, reading: whole(source, lambda n: (read.append(n), reading(n)))
    )

    def soon(count: int) -> bool:
        end = time.monotonic() + 20
        while not (read and read[-1] == count) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.05)
        return read[-1] == count

    with hashing(Source("it", tmp_path)) as running:
        assert soon(22)  # 102 bytes; 20 ahead of nothing
        running.written(0.5)
        assert soon(72)
        assert running.result()["sha256"] == expected(tmp_path)


def test_it_ends_with_the_work(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    monkeypatch.setattr(source_hash, "CHUNK", 10)
    monkeypatch.setattr(source_hash, "AHEAD", 20)
    with pytest.raises(ValueError, match="no plan"), hashing(Source("it", tmp_path)):
        raise ValueError("no plan")  # and does not wait for what nobody asks for


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    with hashing(Source("it", tmp_path)) as running, pytest.raises(ms.MeristemError, match="config"):
        running.result()


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]])
def test_it_is_never_waited_for_in_vain(processes, tmp_path, monkeypatch):
    """A source that is larger than the hash may be ahead."""
    pico.build("llama").save_pretrained(tmp_path / "small")
    monkeypatch.setattr(source_hash, "CHUNK", 1 << 10)
    monkeypatch.setattr(source_hash, "AHEAD", 1 << 10)
    told = []
    written = source_hash.SourceHash.written
    monkeypatch.setattr(
        source_hash.SourceHash, "written", lambda self, share: (told.append(share), written(self, share))[1]
    )
    words = ["--width", "2", "--no-verify", "--max-shard-size", "30KB", *processes]
    done = meristem("grow", tmp_path / "small", tmp_path / "big", *words)
    assert done.returncode == 0, done.stderr
    recorded = json.loads((tmp_path / "big" / "meristem.json").read_text())["source"]["sha256"]
    assert recorded == expected(tmp_path / "small")
    assert told[-1] == 1.0
    assert told[0] == 1.0 if processes else 0 < told[0] < 1
