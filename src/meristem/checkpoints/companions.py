"""What a model directory holds besides its weights: tokenizers, processors, templates, licences. They are
copied to the result.

Some files are left behind, and the program says so: weights in other formats or for other networks (those in
subdirectories), code unless it is trusted, what belongs to a run, a card that somebody wrote (the result has
its own), pipes, and links that lead out of the directory (`leads_out`). Hidden files (`.git`, `.cache`) do
not belong to the model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from meristem.checkpoints.written import is_own
from meristem.errors import MeristemError

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack",
           "*.msgpack.index.json", "*.onnx", "*.onnx_data", "*.gguf", "*.ot", "*.npz", "*.npy", "*.pkl", "*.pickle", "*.distcp",
           "*.tflite", "*.mlmodel")  # fmt: skip
OWN_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
CODE = ("*.py", "*.pyc", "*.so", "*.sh", "*.ipynb")
RUN = (
    "trainer_state.json",
    "optimizer*",
    "scheduler.*",
    "rng_state*",
    "events.out.tfevents.*",
    "runs",
    "wandb",
    "logs",
)
CARD = "README.md"
WRITTEN = ("config.json", "generation_config.json", "meristem.json", CARD, "modeling_grouped.py")


@dataclass(frozen=True)
class Companions:
    """Paths relative to the source: those that are copied, and those that are not."""

    copied: tuple[str, ...]
    left: tuple[str, ...]


def companions(source: Path, trust_remote_code: bool = False, out: Path | None = None) -> Companions:
    """The files of a model directory that are copied to the result.

    Args:
        source: the model directory.
        trust_remote_code: whether code is copied too.
        out: a directory that is being written. It may be inside the source, and does not belong to it.

    Raises:
        MeristemError: if the source cannot be listed.
    """
    copied, left = [], []
    try:
        for name in sorted(os.listdir(source)):
            path = source / name
            if name == CARD and not is_own(source, name):
                left.append(name)
            if name.startswith(".") or name in WRITTEN or path.name == "__pycache__" or _is(path, out):
                continue
            if path.is_symlink() and path.is_dir():
                left.append(f"{name}/")
                continue
            if path.is_dir():
                below = [f"{name}/{inner}" for inner in _files(path, out)]
                if _matches(name, RUN) or any(_matches(inner, WEIGHTS) for inner in below):
                    left.append(f"{name}/")
                    continue
            else:
                below = [name]
            for inner in below:
                if _matches(inner, OWN_WEIGHTS) and "/" not in inner:
                    continue
                stays = (
                    _matches(inner, WEIGHTS)
                    or _matches(inner, RUN)
                    or (_matches(inner, CODE) and not trust_remote_code)
                    or not (source / inner).is_file()
                    or leads_out(source / inner, source)
                )
                (left if stays else copied).append(inner)
    except OSError as error:
        raise MeristemError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error
    return Companions(tuple(copied), tuple(left))


def copy_companions(source: Path, out: Path, names: Sequence[str]) -> None:
    """Copy these files, except those that `out` already has. Entries that name code that is not copied are
    left out.

    Raises OSError.
    """
    copied = [name for name in names if not (out / name).exists()]
    for name in copied:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)
    for name in copied:
        if fnmatch(name, "*_config.json"):
            _forget_absent_code(out / name)


def _forget_absent_code(file: Path) -> None:
    """Take out of `auto_map` what names a class in a file that does not lie there: stock transformers would
    look for it.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return  # copied as it is
    named = entries.get("auto_map") if isinstance(entries, dict) else None
    if not isinstance(named, dict):
        return
    kept = {key: value for key, value in named.items() if not _names_absent(value, file.parent)}
    if kept != named:
        entries = {**entries, "auto_map": kept} if kept else {k: v for k, v in entries.items() if k != "auto_map"}
        file.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _names_absent(reference: Any, directory: Path) -> bool:
    references = reference if isinstance(reference, list) else [reference]
    local = [name.partition(".")[0] for name in references if isinstance(name, str) and "--" not in name]
    return any(not (directory / f"{name}.py").is_file() for name in local)


def differing(source: Path, other: Path) -> list[str]:
    """Companions of `other`, as relative paths, that `source` does not have or has with other contents.
    Raises what `companions` raises.
    """
    try:
        return [
            name
            for name in companions(other).copied
            if not (source / name).is_file() or (source / name).read_bytes() != (other / name).read_bytes()
        ]
    except OSError as error:
        raise MeristemError(f"{error.filename or other} cannot be read: {error.strerror or error}") from error


def leads_out(file: Path, source: Path) -> bool:
    """Whether a file of a model directory is a link that leads out of it. Such a link could copy and publish
    a private file of the user.

    A directory may consist of links to another one. In the cache of the hub, snapshots are links to blobs. So
    files next to the real location of its config.json belong to the model too.
    """
    real = Path(os.path.realpath(file))
    homes = [Path(os.path.realpath(source)), Path(os.path.realpath(source / "config.json")).parent]
    return not any(home in real.parents for home in homes)


def _files(directory: Path, out: Path | None) -> Iterator[str]:
    """The relative paths of all files below it. Links to directories are not followed, and hidden entries are
    left out.
    """
    for name in sorted(os.listdir(directory)):
        path = directory / name
        if name.startswith(".") or name == "__pycache__" or _is(path, out):
            continue
        if not path.is_dir():
            yield name
        elif not path.is_symlink():
            yield from (f"{name}/{inner}" for inner in _files(path, out))


def _is(path: Path, out: Path | None) -> bool:
    return out is not None and os.path.realpath(path) == os.path.realpath(out)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.rpartition("/")[2], pattern) for pattern in patterns)
