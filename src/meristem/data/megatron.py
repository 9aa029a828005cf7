"""What Megatron writes next to its tokens: NAME.idx tells how those of NAME.bin are written."""

from __future__ import annotations

import struct
from pathlib import Path

from meristem.errors import MeristemError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, kind of numbers, sequences, documents
KINDS = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}


def is_index(file: Path) -> bool:
    """Whether this is such an index."""
    with file.open("rb") as content:
        return content.read(len(MAGIC)) == MAGIC


def dtype_beside(tokens: Path) -> str | None:
    """The numbers' type of `NAME.bin`, by `NAME.idx`; None if there is none.

    Raises:
        MeristemError: for an index that is cut off, or of another kind of numbers than any that Megatron
            writes.
    """
    index = tokens.with_suffix(".idx")
    if not index.is_file() or not is_index(index):
        return None
    with index.open("rb") as content:
        header = content.read(HEADER.size)
    if len(header) < HEADER.size:
        raise MeristemError(f"{index} ends after {len(header)} bytes; an index of Megatron begins with {HEADER.size}")
    _, version, kind, *_ = HEADER.unpack(header)
    if version != 1 or kind not in KINDS:
        raise MeristemError(
            f"{index}: version {version} with numbers of kind {kind} is not known (version 1, {', '.join(KINDS.values())})"
        )
    return KINDS[kind]
