"""One thing done to a model directory: what disks, downloads and strangers do to files. Used by the suite and by `fuzzing.py`."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

NASTY = [-1, 0, 1, 3, 10**9, 10**14, 1e308, float("nan"), "x", "", None, [], {}, True, [1], {"a": 1}, "../../etc/passwd", "é\n"]  # fmt: skip
INDEX = "model.safetensors.index.json"


def weight_file(path: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path.glob("*.safetensors")))


def flip_bits(path: Path, rng: random.Random, header_only: bool = False) -> None:
    file = weight_file(path, rng)
    content = bytearray(file.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little") if header_only else len(content)
    for _ in range(rng.randint(1, 5)):
        content[rng.randrange(end)] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    file = weight_file(path, rng)
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def change_config(path: Path, rng: random.Random, nested: bool = False) -> None:
    config = path / "config.json"
    entries = json.loads(config.read_text())
    place = entries.get("rope_parameters") if nested else None
    place = place if isinstance(place, dict) else entries
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([*sorted(place), "auto_map", "attn_implementation", "num_experts", "new_entry"])
        place[name] = rng.choice(NASTY)
    config.write_text(json.dumps(entries))


def break_one_entry(path: Path, rng: random.Random) -> None:
    config = path / "config.json"
    entries = json.loads(config.read_text())
    entries[rng.choice(sorted(entries))] = rng.choice(NASTY)
    config.write_text(json.dumps(entries))


def cut_config(path: Path, rng: random.Random) -> None:
    config = path / "config.json"
    config.write_text(config.read_text()[: rng.randrange(200)])


def change_tensors(path: Path, rng: random.Random, not_finite: bool) -> None:
    file = weight_file(path, rng)
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    if not_finite:
        tensors[name].view(-1)[0] = rng.choice([float("nan"), float("inf")])
    else:
        tensors[rng.choice(["value_head.weight", name + "_2", "model.layers.9.x", "x"])] = torch.ones(3)
    save_file(tensors, file, {"format": "pt"})


def lose_a_file(path: Path, rng: random.Random) -> None:
    rng.choice([weight_file(path, rng), path / "config.json"]).unlink()


def lose_weights(path: Path, rng: random.Random) -> None:
    weight_file(path, rng).unlink()


def add_a_strange_file(path: Path, rng: random.Random) -> None:
    name = rng.choice(
        ["tokenizer.json", "LICENSE", "generation_config.json", "adapter_config.json", "x.safetensors", ".metadata"]
    )
    kinds = [os.mkfifo, os.mkdir, lambda p: Path(p).write_text(rng.choice(["", "{", "[]", "null"]))]
    with contextlib.suppress(FileExistsError):
        rng.choice(kinds)(path / name)


def add_a_link(path: Path, rng: random.Random) -> None:
    (path / "elsewhere").symlink_to(rng.choice(["/nowhere", "..", ".", "config.json", "elsewhere"]))


def change_index(path: Path, rng: random.Random) -> None:
    """Of a sharded directory: where its tensors are said to lie."""
    entries = json.loads((path / INDEX).read_text())
    places = entries["weight_map"]
    name = rng.choice(sorted(places))
    elsewhere = rng.choice([place for place in places.values() if place != places[name]])
    other = rng.choice(
        ["../secret.safetensors", "/etc/passwd", "gone.safetensors", 7, None, "", "..", "config.json", elsewhere]
    )
    if rng.random() < 0.2:
        entries = rng.choice([[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "x"}, "x", None])
    else:
        places[rng.choice([name, "no.such.tensor"])] = other
    (path / INDEX).write_text(json.dumps(entries))


MUTATIONS: dict[str, Callable[[Path, random.Random], None]] = {
    "header": lambda path, rng: flip_bits(path, rng, header_only=True),
    "truncated": truncate,
    "flipped": flip_bits,
    "config": change_config,
    "nested config": lambda path, rng: change_config(path, rng, nested=True),
    "one entry": break_one_entry,
    "stray tensor": lambda path, rng: change_tensors(path, rng, not_finite=False),
    "not finite": lambda path, rng: change_tensors(path, rng, not_finite=True),
    "missing": lose_a_file,
    "weights missing": lose_weights,
    "strange file": add_a_strange_file,
    "link": add_a_link,
    "not json": cut_config,
    "index": change_index,
}


def mutate(path: Path, rng: random.Random) -> str:
    """Do one of these things to a model directory; returns its name."""
    kinds = [kind for kind in MUTATIONS if kind != "index" or (path / INDEX).exists()]
    kind = rng.choice(kinds)
    MUTATIONS[kind](path, rng)
    return kind
