"""The tensors of a model directory, read from its safetensors files one at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from meristem.checkpoints.headers import Entry, read_header
from meristem.checkpoints.other_formats import no_weights_here
from meristem.errors import MeristemError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PIECE = 1 << 28  # bytes of one read; systems have bounds of their own


class StoredTensors(Mapping[str, Tensor]):
    """{name on disk: tensor}. Each tensor is read when it is needed, and not kept.

    Args:
        path: a directory with `model.safetensors`, or with shards and their index.

    Raises:
        MeristemError: if a file is missing, broken or shorter than its header says, or if the index does not
            fit the files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        index = _index(path)
        for file in sorted({path / name for name in index.values()}) if index else [path / WEIGHTS]:
            self.entries |= read_header(file)
        for name, file in (index or {}).items():
            if name not in self.entries or self.entries[name].file != path / file:
                raise MeristemError(f"{path / INDEX} places {name} in {file}, which does not hold it")

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if entry.bytes:
            data = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
            self._read(entry, data)
        return tensor

    def _read(self, entry: Entry, data: memoryview) -> None:
        """The bytes of an entry. Only the requested part of the file is in memory."""
        try:
            with open(entry.file, "rb", buffering=0) as stream:
                place = entry.start
                while data:
                    count = os.preadv(stream.fileno(), [data[:PIECE]], place)
                    if not count:
                        raise MeristemError(f"{entry.file} became shorter while it was read")
                    data, place = data[count:], place + count
        except OSError as error:
            raise MeristemError(f"{entry.file} cannot be read: {error.strerror or error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _index(path: Path) -> dict[str, str] | None:
    """{tensor: file} from the index of shards, or None if there is one file for all."""
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
