"""A disk that refuses one step of a command, whichever: what stood there stays, whole, and the next try succeeds."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from pathlib import Path

import pico
import pytest

import meristem as ms
from meristem.checkpoints import directory as directory_module
from meristem.checkpoints import open_streamed, write_model
from meristem.growth import Growth

STEPS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.listdir", "os.scandir", "fcntl.flock")
_failing: list = []


def _hook(event, arguments):
    if not _failing:
        return
    room, left, seen = _failing[-1]
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if not writes and event not in STEPS:
        return
    what = arguments[0]
    if event != "fcntl.flock" and not (
        isinstance(what, str | bytes | os.PathLike) and os.fsdecode(what).startswith(room)
    ):
        return
    seen.append(f"{event} {what}")
    if len(seen) == left:
        raise OSError(errno.EIO, "Input/output error")


@contextlib.contextmanager
def failing_at(step, room):
    """Step number `step` of what changes or lists files below a directory fails; gives the steps that were tried."""
    if not getattr(_hook, "installed", False):
        sys.addaudithook(_hook)
        _hook.installed = True
    seen: list[str] = []
    _failing.append((str(room), step, seen))
    try:
        yield seen
    finally:
        _failing.pop()


def content(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    pico.build("llama").save_pretrained(path)
    (path / "tokenizer.json").write_text("{}")
    (path / "templates").mkdir()
    (path / "templates" / "a.jinja").write_text("a")
    return path


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_each_step_fails_in_turn(small, tmp_path, monkeypatch, there, can_exchange):
    models = {
        width: Growth.of(open_streamed(str(small)), ms.HyperCloning(width=width), verify=False) for width in (2, 3)
    }
    monkeypatch.setattr("meristem.checkpoints.exchange.os.fsync", lambda handle: None)  # the disk is not what is tried
    if not can_exchange:
        monkeypatch.setattr(directory_module, "exchange", lambda one, other: False)

    def write(width, out):
        write_model(
            models[width].model, out, {"methods": []}, small, overwrite=True, max_shard_size="100KB", sources=[small]
        )

    whole = {}
    for width in (2, 3):
        write(width, tmp_path / "whole" / str(width))
        whole[width] = content(tmp_path / "whole" / str(width))
    before = content(small)
    outcomes, step = [], 0
    while True:
        step += 1
        room = tmp_path / "room"
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir()
        out = room / "deep" / "out"
        if there:
            shutil.copytree(tmp_path / "whole" / "2", out)
        with failing_at(step, room) as seen:
            try:
                write(3, out)
                said = None
            except ms.MeristemError as error:
                said = str(error)
        where = f"step {step}: {seen[step - 1] if len(seen) >= step else 'none'}"
        found = content(out) if out.exists() else None
        if said is None:
            assert found == whole[3], where
        else:
            assert "Input/output error" in said, (where, said)
            assert found in ((whole[2] if there else None), whole[3]), where  # the old one, or the new one
        outcomes.append(said is None)
        if len(seen) < step:
            break
        with directory_module.atomic_directory(out, overwrite=True) as partial:  # the next try
            (partial / "config.json").write_text("{}")
        assert os.listdir(out.parent) == ["out"], where
    assert step > 20
    assert outcomes[-1]
    assert not all(outcomes)
    assert content(small) == before
