"""An anatomy as readable text: what `meristem inspect` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from meristem.anatomy.structure import TensorAnatomy, folded

if TYPE_CHECKING:
    from meristem.anatomy.anatomy import Anatomy


def axis_rows(anatomy: Anatomy) -> list[tuple[str, str, str]]:
    """(axis, size, where its size comes from), then the depths."""
    rows = [(axis.name, str(axis.size), axis.source) for axis in anatomy.axes.values()]
    return rows + [(block.axis, str(block.length), f"blocks {block.prefix}.*") for block in anatomy.blocks]


def tensor_rows(anatomy: Anatomy) -> list[tuple[str, str, str, str]]:
    """(name with * for the block index, shape, dimensions with roles, how known); equal blocks are folded."""
    rows: dict[tuple[str, str, str, str], None] = {}
    for tensor in anatomy.tensors.values():
        dimensions = " , ".join(f"{d.role}[{d.layout}]" for d in tensor.dimensions)
        known = "tied to " + tensor.tied_to if tensor.tied_to else ", ".join(_sources(tensor))
        rows[(_folded(tensor), " x ".join(map(str, tensor.shape)), dimensions, known)] = None
    return list(rows)


def as_text(anatomy: Anatomy) -> str:
    """Both tables in plain columns."""
    axes = columns([("axis", "size", "from"), *axis_rows(anatomy)])
    tensors = columns([("tensor", "shape", "dimensions", "known by"), *tensor_rows(anatomy)])
    return f"{anatomy.builder.model_type}\n\n{axes}\n\n{tensors}"


def _sources(tensor: TensorAnatomy) -> Iterable[str]:
    return dict.fromkeys(d.source for d in tensor.dimensions)


def _folded(tensor: TensorAnatomy) -> str:
    return folded(tensor.name) if tensor.block else tensor.name


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows, the first of them headings, as plain aligned lines: a name that is cut short names nothing, and there may be many."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
