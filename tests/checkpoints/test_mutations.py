"""Broken and hostile model directories: a clear error each time, and nothing outside OUT."""

from __future__ import annotations

import random
import shutil

import pico
import pytest
from mutations import MUTATIONS

import meristem as ms
from meristem.checkpoints import open_streamed
from meristem.cli.growing import Request, grow_checkpoint

KINDS = ("truncated", "header", "weights missing", "index", "one entry", "not json")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "small"
    pico.build("llama").save_pretrained(path, max_shard_size="30KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_mutations(kind, sharded, tmp_path, capsys):
    errors: list[str] = []
    for number in range(34):
        rng = random.Random(f"{kind} {number}")
        folder = tmp_path / str(number)
        shutil.copytree(sharded, folder / "small")
        MUTATIONS[kind](folder / "small", rng)
        before = sorted(path.name for path in (folder / "small").iterdir())
        try:
            grow_checkpoint(Request(str(folder / "small"), folder / "out", options={"width": 2}, prove=False))
            open_streamed(str(folder / "out"))  # the change did not matter: the output is whole
        except ms.MeristemError as error:
            errors.append(str(error))
        assert {path.name for path in folder.iterdir()} <= {"small", "out"}
        assert sorted(path.name for path in (folder / "small").iterdir()) == before
    assert len(errors) >= (10 if kind in ("one entry", "header") else 30)
    assert len(list(tmp_path.glob("*/out"))) == 34 - len(errors)
    assert all(str(tmp_path) in error for error in errors)  # which file or directory is meant
    assert "Traceback" not in capsys.readouterr().err
