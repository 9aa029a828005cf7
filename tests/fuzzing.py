"""Mutated model directories, configs and command lines: no traceback, nothing touched outside of OUT, nothing lost inside it.

`python tests/fuzzing.py 1000` tries that many and prints a table; the suite tries a few.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import os
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import pico
from mutations import mutate

from meristem.checkpoints import open_streamed
from meristem.checkpoints.stored import StoredTensors
from meristem.cli.main import main

FLAGS = {
    "--width": ["0", "1", "2", "3", "-1", "1.5", "nan", "x", "", "99999999999999999999", "1e3"],
    "--depth": ["2", "0", "-3", "x"],
    "--hidden-size": ["48", "64", "100", "0", "-5", "7", "999999999999", "x"],
    "--intermediate-size": ["60", "88", "1", "x"],
    "--num-attention-heads": ["3", "8", "0", "1000000"],
    "--num-key-value-heads": ["2", "4", "5"],
    "--num-hidden-layers": ["1", "2", "3", "99999999"],
    "--method": ["hypercloning", "lemon", "net2net", "aki", "stacking", "midas", "zero_padding", "weight_selection", "ligo", "", ",",
                 "lemon,stacking", "lemon,,", "hypercloing", "stacking,stacking"],
    "--noise": ["0.1", "nan", "inf", "-1", "1e300", "x"],
    "--seed": ["3", "-1", "99999999999999999999", "1.5"],
    "--tied": ["keep", "untie", "maybe", ""],
    "--option": ["noise=high", "noise", "=", "selection=best", "order=interpolate", "layers=1", "width=2", "name=x", "seed=1e9"],
    "--max-shard-size": ["5GB", "10KB", "0", "-1", "big", "", "1B"],
    "--blocks": ["all", "layers", "decoder", "x", ""],
    "--size": ["ffn=60", "hidden=64", "layers=3", "layers=x", "wings=3", "ffn", "=", "ffn=-1"],
    "--drop": ["*", "lm_head.*", "["],
    "--inputs": ["nowhere.json", ".", "/dev/null"],
    "--weights": ["0.5,0.5", "1,0", "a,b", "", "nan,nan", "0.1"],
    "--norm": ["plain", "grouped", "equalised", "batched"],
    "--tokens": ["10M", "0", "many", "-5", "1e99"],
}  # fmt: skip
ALONE = ["--no-verify", "--dry-run", "--overwrite", "--trust-remote-code", "--allow-differences", "--frobnicate"]


def command_line(room: Path, rng: random.Random) -> list[str]:
    """A command with some of the flags, good and bad."""
    small, out = (
        str(room / "small"),
        str(
            room
            / rng.choice(["out"] * 8 + ["deep/er/out", "there", "small/out", "file", "link", ".", "small", "x" * 300])
        ),
    )
    verb = rng.choice(["grow"] * 6 + ["shrink", "fuse", "verify", "inspect", "plan"])
    words = {
        "grow": [small, out], "shrink": [small, out, "--hidden-size", "16"], "fuse": [small, str(room / "other"), out],
        "verify": [small, str(room / "other")], "inspect": [small], "plan": [small, "--tokens", "1M"],
    }[verb]  # fmt: skip
    flags = ["--width", "2"] if verb in ("grow", "plan") and rng.random() < 0.7 else []
    for flag in rng.sample(sorted(FLAGS), rng.choice([0, 0, 0, 1, 1, 2])):
        flags += [flag, rng.choice(FLAGS[flag])]
    return [verb, *words, *flags, *rng.sample(ALONE, rng.choice([0, 0, 1, 2]))]


def furnish(room: Path, rng: random.Random) -> None:
    """SRC, another model, and what may already be where OUT is wanted."""
    for name, seed in (("small", 0), ("other", 1), ("there", 2)):
        family = rng.choice(["llama", "llama", "gpt2", "bert"]) if name == "small" else "llama"
        shard = "30KB" if name == "small" and rng.random() < 0.3 else "5GB"
        pico.build(family, seed).save_pretrained(room / name, max_shard_size=shard)
    if rng.random() < 0.5:
        (room / "there" / "notes.txt").write_text("months of work")
    (room / "file").write_text("precious")
    (room / "link").symlink_to("linked")


def tree(room: Path) -> dict[str, str]:
    """{path: what is there} of everything below."""
    found = {}
    for path in sorted(room.rglob("*")):
        if path.is_symlink():
            what = f"-> {os.readlink(path)}"
        elif path.is_file():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            what = "directory" if path.is_dir() else "special"
        found[str(path.relative_to(room))] = what
    return found


def attempt(seed: str, room: Path) -> tuple[str, str]:
    """One command on one mutated directory. Returns (what was mutated, what came out); raises AssertionError where that is wrong."""
    rng = random.Random(seed)
    furnish(room, rng)
    mutated = mutate(room / "small", rng) if rng.random() < 0.5 else "nothing"
    arguments = command_line(room, rng)
    before, said = tree(room), io.StringIO()
    argv, sys.argv = sys.argv, ["meristem", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
        code = 0
    except SystemExit as leave:
        code = leave.code or 0
    except BaseException as error:
        raise AssertionError(f"{seed}: {mutated}, {' '.join(arguments)}: {traceback.format_exc()}") from error
    finally:
        sys.argv = argv
    where = f"{seed}: {mutated}, {' '.join(arguments)} -> {code}\n{said.getvalue()}"
    assert code in (0, 1, 2), where
    assert "Traceback" not in said.getvalue(), where
    out = next(
        (a for a in arguments[1:4] if a.startswith(str(room)) and Path(a).name in ("out", "there", "link")), None
    )
    after = tree(room)
    place = str(Path(out).resolve().relative_to(room.resolve())) if out else None
    writes = code == 0 and arguments[0] in ("grow", "shrink", "fuse") and "--dry-run" not in arguments
    allowed = {place, *(str(p) for p in Path(place).parents)} if writes and place else set()
    for path in before.keys() | after.keys():
        if before.get(path) != after.get(path):
            assert path in allowed or (place and writes and path.startswith(place + "/")), f"{path} changed; {where}"
    if writes:
        assert out, where
        open_streamed(out)  # stock names, shapes and nothing left over
        assert len(StoredTensors(Path(out))) > 0
        assert not (Path(out) / "notes.txt").exists() or "there/notes.txt" not in before, where
        assert "there/notes.txt" not in before or "there/notes.txt" in after, where
    return mutated, {0: "done", 1: "a broken promise", 2: "an error that says what is wrong"}[code]


def run(count: int, first: int = 0) -> None:
    outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    failures = []
    for number in range(first, first + count):
        room = Path(tempfile.mkdtemp(prefix="fuzz"))
        try:
            outcomes[attempt(str(number), room)] += 1
        except AssertionError as error:
            failures.append(error)
            print(f"FAILED {error}", flush=True)
        finally:
            shutil.rmtree(room, ignore_errors=True)
    for (mutated, outcome), times in sorted(outcomes.items()):
        print(f"{mutated:16} {outcome:36} {times:5}")
    print(f"{count} attempts, {len(failures)} failures")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
