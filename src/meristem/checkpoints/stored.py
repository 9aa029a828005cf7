"""The tensors of a model directory, read from its safetensors files one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meristem.checkpoints.other_formats import no_weights_here
from meristem.errors import MeristemError, first_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WINDOW = 1 << 28  # bytes read through one mapping of a file; renewing it lets go of the pages behind
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """One tensor in a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class StoredTensors(Mapping[str, Tensor]):
    """{name on disk: tensor}, read when asked for; what has been read is not kept.

    Args:
        path: a directory with `model.safetensors`, or with shards and their index.

    Raises:
        MeristemError: if a file is missing, broken or shorter than its header says, or the index does not fit the files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._open: tuple[Path, Any] | None = None
        self._seen = 0
        index = _index(path)
        for file in sorted({path / name for name in index.values()}) if index else [path / WEIGHTS]:
            self.entries |= _entries(file)
        for name, file in (index or {}).items():
            if name not in self.entries or self.entries[name].file != path / file:
                raise MeristemError(f"{path / INDEX} places {name} in {file}, which does not hold it")

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        if self._open is None or self._open[0] != entry.file or self._seen > WINDOW:
            self._open, self._seen = (entry.file, _opened(entry.file)), 0
        self._seen += entry.bytes
        return self._open[1].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _index(path: Path) -> dict[str, str] | None:
    """{tensor: file} from the index of shards; None where there is one file for all."""
    if (path / WEIGHTS).is_file():
        return None
    file = path / INDEX
    if not file.exists():
        raise no_weights_here(path)
    try:
        index = json.loads(file.read_text())["weight_map"]
        names = set(index.values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise MeristemError(f"{file} is not a weight index: {error!r}") from error
    outside = [n for n in names if not isinstance(n, str) or Path(n).name != n or not n.endswith(".safetensors")]
    if outside or not names:
        raise MeristemError(
            f"{file} points outside its own directory: {outside[0]!r}" if outside else f"{file} is empty"
        )
    return index


def _entries(file: Path) -> dict[str, Entry]:
    opened = _opened(file)
    entries = {}
    names: list[str] = opened.keys()
    for name in names:
        part = opened.get_slice(name)
        dtype = DTYPES.get(part.get_dtype())
        if dtype is None:
            raise MeristemError(
                f"{file}: {name} is stored as {part.get_dtype()}; known: {', '.join(DTYPES)}. Weights that are quantised have no "
                "units to grow: use those that they were made from"
            )
        entries[name] = Entry(file, tuple(part.get_shape()), dtype)
    return entries


def _opened(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise MeristemError(f"{file.parent}: the index names {file.name}, which is not there")
    try:
        file.open("rb").close()  # safetensors says of a file that may not be read that it is not there
    except OSError as error:
        raise MeristemError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise MeristemError(f"{file} is not a whole safetensors file: {first_line(error)}") from error
