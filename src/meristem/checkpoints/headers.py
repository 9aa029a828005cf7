"""The header of a safetensors file, read and checked without mapping the file, which may be larger than
memory.

The format is: eight bytes (little-endian) with the length of the header, the header as JSON, then the bytes
of the tensors without gaps.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from meristem.errors import MeristemError

LONGEST = 100_000_000  # bytes of a header; safetensors' own bound
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
    """One tensor in a file: the position of its bytes, its shape and its dtype."""

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def read_header(file: Path) -> dict[str, Entry]:
    """{name: entry} of all tensors in the file.

    Raises:
        MeristemError: if the file does not exist, cannot be read or is not a complete safetensors file, or if
            it holds unknown dtypes.
    """
    if not file.is_file():
        raise MeristemError(f"{file.parent}: the index names {file.name}, which does not exist")
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(LONGEST, size - 8):
                raise _not_whole(file, "its header is longer than the file")
            text = stream.read(length)
    except OSError as error:
        raise MeristemError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise _not_whole(file, "its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise _not_whole(file, "its header is not a JSON object")
    found = {n: _entry(file, 8 + length, n, e) for n, e in header.items() if n != "__metadata__"}
    end = 8 + length
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if entry.start != end:
            raise _not_whole(file, f"{name} does not begin where the tensor before it ends")
        end += entry.bytes
    if end != size:
        raise _not_whole(file, f"its tensors end at byte {end:,}, the file at {size:,}")
    return found


def _entry(file: Path, begin: int, name: str, entry: Any) -> Entry:
    try:
        kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [start, end, *shape]
        if not all(
            isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 62 for number in sizes
        ):
            raise TypeError
    except (TypeError, KeyError, ValueError) as error:
        raise _not_whole(file, f"its header does not describe {name}") from error
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise MeristemError(
            f"{file}: {name} is stored as {kind}; known: {', '.join(DTYPES)}. Weights that are quantised have no units to grow: "
            "use the original weights"
        )
    count = 1
    for number in shape:
        count *= number
    if end - start != count * dtype.itemsize:
        raise _not_whole(file, f"{name} of shape {shape} has {end - start:,} bytes")
    return Entry(file, begin + start, tuple(shape), dtype)


def _not_whole(file: Path, why: str) -> MeristemError:
    return MeristemError(f"{file} is not a whole safetensors file: {why}")
