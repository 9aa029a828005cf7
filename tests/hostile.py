"""Hostile things to put into a model directory, every command that opens one, and a watch of what is opened meanwhile."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SECRET = "a secret of the user's"
MODULES = ("evil.py", "generate.py", "modeling_grouped.py", "tokenization_x.py", "build.py", "processing_x.py")


class Canary:
    """Unpickled, it leaves a file behind."""

    def __init__(self, ran: Path) -> None:
        self.ran = str(ran)

    def __reduce__(self) -> Any:
        return open, (self.ran, "w")


class Site:
    """A room with a model directory, a secret beside it, a hub cache with a repository of code, and a file that nothing may make.

    Args:
        room: an empty directory.
        model: a directory whose files are copied.
    """

    def __init__(self, room: Path, model: Path) -> None:
        import shutil

        self.room, self.path, self.ran, self.out = room, room / "hostile", room / "ran", room / "out"
        self.outside, self.hub = room / "outside", room / "hub"
        shutil.copytree(model, self.path)
        self.outside.mkdir()
        (self.outside / "secret.txt").write_text(SECRET)
        (self.outside / "secret.json").write_text(json.dumps({"secret": SECRET}))
        save_file({"secret": torch.full((4,), 7.0)}, self.outside / "model.safetensors")
        other = self.on_hub("other/repo")
        for folder in (self.path, self.path / "custom_generate", other, other / "custom_generate"):
            folder.mkdir(parents=True, exist_ok=True)
            for name in MODULES:
                (folder / name).write_text(f"open({str(self.ran)!r}, 'w')\n")

    def on_hub(self, name: str, directory: Path | None = None, commit: str = "a" * 40) -> Path:
        """The snapshot of a repository in the cache, with the files of a directory, as links to blobs, which the hub's client makes."""
        folder = self.hub / f"models--{name.replace('/', '--')}"
        snapshot, blobs = folder / "snapshots" / commit, folder / "blobs"
        for place in (snapshot, blobs, folder / "refs"):
            place.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        for file in sorted(directory.rglob("*")) if directory else ():
            if file.is_file() and not file.is_symlink():
                inner = file.relative_to(directory)  # pyright: ignore[reportArgumentType]
                blob = blobs / str(inner).replace("/", "_")
                blob.write_bytes(file.read_bytes())
                (snapshot / inner).parent.mkdir(parents=True, exist_ok=True)
                (snapshot / inner).symlink_to(os.path.relpath(blob, (snapshot / inner).parent))
        return snapshot

    def rewrite(self, file: str = "config.json", **entries: Any) -> None:
        path = self.path / file
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **entries}))

    def weights(self, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        file = self.path / "model.safetensors"
        tensors = load_file(file)
        save_file(change(dict(tensors)), file, metadata={"format": "pt"})

    def pickled(self, *names: str) -> None:
        for name in names:
            (self.path / name).write_bytes(pickle.dumps(Canary(self.ran)))

    def unharmed(self) -> None:
        """Nothing ran, the secret is where it was and nowhere else."""
        assert not self.ran.exists()
        assert sorted(os.listdir(self.outside)) == ["model.safetensors", "secret.json", "secret.txt"]
        for path in self.out.rglob("*") if self.out.exists() else ():
            assert not path.is_symlink(), path
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def commands(source: str, out: Path, recipe: Path) -> dict[str, list[str]]:
    """Every command that opens a model, as its arguments."""
    recipe.write_text(
        "data: {source: python-stdlib, sequence_length: 16}\n"
        f"nodes:\n  start: {{checkpoint: {{source: {json.dumps(source)}}}}}\n"
        "  grown: {grow: {from: start, method: hypercloning, width: 2}}\n"
    )
    return {
        "inspect": ["inspect", source],
        "plan": ["plan", source, "--width", "2", "--tokens", "1M", "--sequence-length", "8"],
        "verify": ["verify", source, source],
        "grow": ["grow", source, str(out), "--width", "2", "--noise", "0"],
        "stack": ["grow", source, str(out), "--method", "stacking", "--depth", "2"],
        "shrink": ["shrink", source, str(out), "--hidden-size", "16"],
        "fuse": ["fuse", source, source, str(out)],
        "average": ["average", source, source, str(out)],
        "run": ["run", str(recipe), "--out", str(out)],
    }


def invoke(arguments: list[str]) -> tuple[int, str]:
    """The command line in this process: its exit code and all that it said. Whatever else it raises comes through."""
    from meristem.cli.main import main

    said, argv = io.StringIO(), sys.argv
    sys.argv = ["meristem", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
        code: Any = 0
    except SystemExit as leave:
        code = leave.code or 0
    finally:
        sys.argv = argv
    return int(code), said.getvalue()


_watching: list[tuple[Path, list[str]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watching and isinstance(arguments[0], str | bytes | os.PathLike):
        folder, opened = _watching[-1]
        real = os.path.realpath(os.fsdecode(arguments[0]))
        if real.startswith(str(folder) + os.sep):
            opened.append(real)


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """The files below a folder that Python opens meanwhile, links resolved."""
    if not getattr(_hook, "installed", False):
        sys.addaudithook(_hook)
        _hook.installed = True  # type: ignore[attr-defined]
    opened: list[str] = []
    _watching.append((Path(os.path.realpath(folder)), opened))
    try:
        yield opened
    finally:
        _watching.pop()
