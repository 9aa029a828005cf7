"""The real data of ../shared/data, where that is there."""

from __future__ import annotations

import importlib.util
import lzma
import zipfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from support.trained import ROOT

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
    """Where the corpus is: a text of ../shared/data is unpacked into a folder of documents; everything else is left as it is."""
    packed = FOLDER / "text" / f"{data}.txt.xz"
    if not packed.is_file():
        return data
    folder = ROOT / "runs" / "texts" / data
    if not folder.is_dir():
        from meristem.checkpoints.write import atomic_directory

        with lzma.open(packed, "rt", encoding="utf-8") as file:
            documents = file.read().split("<|endoftext|>")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(folder) as unfinished:
            for number, document in enumerate(documents):
                (unfinished / f"{number:05d}.txt").write_text(document, encoding="utf-8")
    return str(folder)


def reviews(folder: Path) -> str | None:
    """The long movie reviews, unpacked into `folder` as a corpus of documents; None where ../shared/data is not."""
    packed, place = FOLDER / "text" / "nltk_movie_reviews.zip", folder / "movie_reviews"
    if not packed.is_file():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # parts of a benchmark may run side by side
        if not place.is_dir():
            _unpack(packed, place)
    return str(place)


def _unpack(packed: Path, place: Path) -> None:
    from meristem.checkpoints.write import atomic_directory

    with atomic_directory(place) as unfinished, zipfile.ZipFile(packed) as archive:
        for name in archive.namelist():
            if name.endswith(".txt") and "movie_reviews/" in name:
                (unfinished / "-".join(name.split("/")[-2:])).write_bytes(archive.read(name))
