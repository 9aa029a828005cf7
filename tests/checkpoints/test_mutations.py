"""Broken and hostile model directories: a clear error each time, and nothing outside OUT."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pico
import pytest

import meristem as ms
from meristem.checkpoints import open_streamed
from meristem.cli.commands import grow

NASTY = [
    -1,
    0,
    1,
    3,
    10**9,
    10**14,
    1e308,
    float("nan"),
    "x",
    "",
    None,
    [],
    {},
    True,
    [1],
    {"a": 1},
    "../../etc/passwd",
]
KINDS = ("truncated", "header", "missing", "index", "config", "not json")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "small"
    pico.build("llama").save_pretrained(path, max_shard_size="30KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def mutate(path: Path, kind: str, rng: random.Random) -> None:
    file = rng.choice(sorted(path.glob("*.safetensors")))
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])
    elif kind == "header":
        content = bytearray(file.read_bytes())
        header = 8 + int.from_bytes(content[:8], "little")
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(header)] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    elif kind == "missing":
        file.unlink()
    elif kind == "index":
        index = path / "model.safetensors.index.json"
        entries = json.loads(index.read_text())
        places = entries["weight_map"]
        name = rng.choice(sorted(places))
        other = rng.choice(["../secret.safetensors", "/etc/passwd", "gone.safetensors", 7, None, "", "..", "config.json",
                            rng.choice([p for p in places.values() if p != places[name]])])  # fmt: skip
        if rng.random() < 0.2:
            entries = rng.choice([[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "x"}, "x", None])
        else:
            places[rng.choice([name, "no.such.tensor"])] = other
        index.write_text(json.dumps(entries))
    else:
        config = path / "config.json"
        entries = json.loads(config.read_text())
        if kind == "config":
            entries[rng.choice(sorted(entries))] = rng.choice(NASTY)
            config.write_text(json.dumps(entries))
        else:
            text = config.read_text()
            config.write_text(text[: rng.randrange(len(text) - 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_mutations(kind, sharded, tmp_path, capsys):
    errors: list[str] = []
    for number in range(34):
        rng = random.Random(f"{kind} {number}")
        folder = tmp_path / str(number)
        shutil.copytree(sharded, folder / "small")
        mutate(folder / "small", kind, rng)
        before = sorted(path.name for path in (folder / "small").iterdir())
        try:
            grow(str(folder / "small"), folder / "out", "hypercloning", {"width": 2}, False, False, False, "5GB", False)
            open_streamed(str(folder / "out"))  # the change did not matter: the output is whole
        except ms.MeristemError as error:
            errors.append(str(error))
        assert {path.name for path in folder.iterdir()} <= {"small", "out"}
        assert sorted(path.name for path in (folder / "small").iterdir()) == before
    assert len(errors) >= (10 if kind in ("config", "header") else 30)
    assert len(list(tmp_path.glob("*/out"))) == 34 - len(errors)
    assert all(str(tmp_path) in error for error in errors)  # which file or directory is meant
    assert "Traceback" not in capsys.readouterr().err
