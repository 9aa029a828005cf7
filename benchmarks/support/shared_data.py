"""The real data of ../shared/data, where that is there."""

from __future__ import annotations

import importlib.util
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parents[3] / "shared" / "data"


def loader() -> Any | None:
    """Its own module of loaders; None where ../shared/data is not."""
    file = FOLDER / "load_data.py"
    if not file.is_file():
        return None
    spec = importlib.util.spec_from_file_location("load_data", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(data: str) -> str:
    """Where the corpus is. A name without a slash, but for python-stdlib, is a text of ../shared/data, which is unpacked into a folder of
    documents. Everything else is left as it is.

    Raises:
        SystemExit: where a text of ../shared/data is wanted and is not there.
    """
    if data == "python-stdlib" or "/" in data:
        return data
    packed, place = FOLDER / "text" / f"{data}.txt.xz", ROOT / "runs" / "texts" / data
    if not packed.is_file() and not place.is_dir():
        raise SystemExit(
            f"the text {data!r} lies in ../shared/data, which is not there ({packed}); python-stdlib needs nothing"
        )
    return _once(place, lambda unfinished: _documents(packed, unfinished))


def images(name: str) -> str | None:
    """The images (`cifar10`, `tiny_imagenet50`, `mnist`, `fashion_mnist`) as an .npz file that recipes read; None where ../shared/data is not."""
    file = ROOT / "runs" / "images" / f"{name}.npz"
    source = loader()
    if file.exists() or source is None:
        return str(file) if file.exists() else None
    import numpy as np

    if held := {"cifar10": "test", "tiny_imagenet50": "val"}.get(name):
        (x, y), (held_x, held_y) = (source.jpegs(f"{name}_jpeg", split) for split in ("train", held))
    else:
        x, y, held_x, held_y = source.mnist(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{name}.partial.npz")
    np.savez_compressed(partial, x_train=x, y_train=y, x_test=held_x, y_test=held_y)
    partial.replace(file)
    return str(file)


def _once(place: Path, write: Callable[[Path], None]) -> str:
    """The folder `place`, written if it is not there: whole or not at all, and by one process of those that run side by side."""
    from meristem.checkpoints.write import atomic_directory

    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.parent / ".lock"):
        if not place.is_dir():
            with atomic_directory(place) as unfinished:
                write(unfinished)
    return str(place)


def _documents(packed: Path, folder: Path) -> None:
    with lzma.open(packed, "rt", encoding="utf-8") as file:
        documents = file.read().split("<|endoftext|>")
    for number, document in enumerate(documents):
        (folder / f"{number:05d}.txt").write_text(document, encoding="utf-8")
