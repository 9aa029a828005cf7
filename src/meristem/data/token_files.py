"""Files of tokens, memory-mapped, whatever their size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meristem.data.megatron import dtype_beside
from meristem.errors import MeristemError

SUFFIXES = (".npy", ".bin")
DTYPES = ("uint16", "uint32", "int32")
SPLITS = {"train": ("train",), "tune": ("tune",), "eval": ("eval", "val", "validation", "valid", "test")}
SAMPLES, SAMPLE_BYTES = 64, 1 << 16
LLMC_HEADER = 256  # int32: a number that tells the kind, a version, how many tokens follow
LLMC_KINDS = {20240520: "uint16", 20240801: "uint32"}  # GPT-2's tokens, Llama 3's


def is_token_source(path: Path) -> bool:
    """Whether this is a token file, or a folder with one that is named after the split `train`."""
    return (path.is_file() and path.suffix in SUFFIXES) or (path.is_dir() and _file_of(path, ("train",)) is not None)


def open_tokens(file: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """A 1-D array that stays on disk, and the contents of the JSON file next to it (the same name with .json,
    or `meta.json`).

    `.npy` files are those of NumPy. `.bin` files are those of nanoGPT, llm.c and Megatron: plain numbers of
    the `dtype` in the JSON file (uint16 by default), from its `offset` in bytes on. If the JSON file contains
    neither, both come from the header of llm.c, or the type from the `.idx` file of Megatron. The JSON file
    contains `vocab_size`, and optionally `end_token`, `pad_token` and `mask_token`.

    Raises:
        MeristemError: if the file holds something else, if there is no JSON file with `vocab_size`, or if
            tokens are not below it (samples are checked).
    """
    said = _beside(file)
    if file.suffix == ".npy":
        try:
            tokens = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise MeristemError(f"{file} is not a NumPy array of numbers: {error}") from error
    else:
        dtype, offset = _layout(file, said)
        if dtype not in DTYPES:
            raise MeristemError(f"{file}: tokens are {', '.join(DTYPES)}; the file next to it says {dtype!r}")
        size = file.stat().st_size - offset
        if size <= 0 or size % np.dtype(dtype).itemsize:
            raise MeristemError(f"{file}: {size} bytes after offset {offset} are not a whole number of {dtype} tokens")
        tokens = np.memmap(file, dtype=dtype, mode="r", offset=offset)
    if tokens.ndim != 1 or tokens.dtype.name not in DTYPES:
        raise MeristemError(f"{file}: expected a 1-D array of {', '.join(DTYPES)}, got {tokens.dtype} {tokens.shape}")
    for piece in _samples(file, tokens):
        check_range(piece, said["vocab_size"], str(file))
    return tokens, said


def _samples(file: Path, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces from all parts of the array. They are read, not mapped, because a mapped page may be one of 2
    MB.
    """
    start, length = int(getattr(tokens, "offset", 0)), SAMPLE_BYTES // 64
    for first in range(0, len(tokens), max(length, len(tokens) // SAMPLES)):
        yield np.fromfile(file, tokens.dtype, min(length, len(tokens) - first), offset=start + first * tokens.itemsize)


def check_range(tokens: np.ndarray, vocab_size: int, label: str) -> None:
    """Raises MeristemError if a token is not in the vocabulary."""
    if len(tokens) and not 0 <= (worst := int(tokens.min() if tokens.min() < 0 else tokens.max())) < vocab_size:
        raise MeristemError(
            f"{label} holds token {worst}, and its vocabulary has {vocab_size} (dtype, offset or vocab_size is wrong)"
        )


def _layout(file: Path, said: Mapping[str, Any]) -> tuple[str, int]:
    """The dtype of the numbers, and how many bytes come before them."""
    if "offset" not in said and file.stat().st_size >= 4 * LLMC_HEADER:
        kind, _, count, *_ = np.fromfile(file, dtype=np.int32, count=LLMC_HEADER).tolist()
        dtype = str(said.get("dtype", LLMC_KINDS.get(kind)))
        if (
            kind in LLMC_KINDS
            and dtype in DTYPES
            and file.stat().st_size == 4 * LLMC_HEADER + count * np.dtype(dtype).itemsize
        ):
            return dtype, 4 * LLMC_HEADER
    index = dtype_beside(file)
    if index and said.get("dtype", index) != index:
        raise MeristemError(f"{file}: its .idx file says {index}, the JSON file next to it dtype {said['dtype']!r}")
    return index or str(said.get("dtype", "uint16")), int(said.get("offset", 0))


def split_files(path: Path) -> dict[str, Path]:
    """The files of a token source by split: one file for all, or those of a folder (`train`, `val` or `eval`,
    optionally `tune`).
    """
    if path.is_file():
        return {"train": path}
    found = {split: _file_of(path, names) for split, names in SPLITS.items()}
    return {split: file for split, file in found.items() if file is not None}


def fingerprint_of(file: Path) -> str:
    """A fingerprint of a token file, in milliseconds: its size, its times, and pieces from all parts of its
    contents.
    """
    known, digest = file.stat(), hashlib.sha256()
    digest.update(f"{known.st_size} {known.st_mtime_ns} {known.st_ctime_ns}".encode())
    with file.open("rb") as content:
        for sample in range(SAMPLES):
            content.seek(max(0, (known.st_size - SAMPLE_BYTES) * sample // (SAMPLES - 1)))
            digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _file_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    files = (folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _beside(file: Path) -> dict[str, Any]:
    places = (file.with_suffix(".json"), file.with_name("meta.json"))
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        raise MeristemError(
            f'{file} needs {places[0].name} (or meta.json) next to it, with at least {{"vocab_size": ...}}'
        )
    try:
        said = json.loads(place.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise MeristemError(f"{place} is not valid JSON: {error}") from error
    if not isinstance(said, Mapping) or not _is_number(said.get("vocab_size"), 1):
        raise MeristemError(f"{place} names no vocab_size (a whole number)")
    for key in ("offset", "end_token", "pad_token", "mask_token"):
        below = said["vocab_size"] if key != "offset" else file.stat().st_size
        if said.get(key) is not None and not (_is_number(said[key], 0) and said[key] < below):
            raise MeristemError(f"{place}: {key} is {said[key]!r}; expected a whole number from 0 to {below - 1}")
    return dict(said)


def _is_number(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
