"""An anatomy as readable text, as `meristem inspect` prints it."""

from __future__ import annotations

import textwrap
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
    """(name with * for the number of the block, shape, dimensions with roles, how known). Equal blocks are
    shown once.
    """
    return list(dict.fromkeys(_row(tensor) for tensor in anatomy.tensors.values()))


def as_text(anatomy: Anatomy) -> str:
    """Both tables in plain columns."""
    axes = columns([("axis", "size", "from"), *axis_rows(anatomy)])
    tensors = columns([("tensor", "shape", "dimensions", "known by"), *tensor_rows(anatomy)])
    return f"{anatomy.builder.model_type}\n\n{axes}\n\n{tensors}"


def by_block(anatomy: Anatomy, width: int = 80) -> str:
    """Axes, then the tensors block by block with full names. Equal blocks are shown once, and names within a
    block start at the block. Lines have at most `width` columns if a name and a word allow that.
    """
    axes = columns([("axis", "size", "from"), *axis_rows(anatomy)])
    groups: dict[str, dict[str, str]] = {}
    lengths = {block.axis: block.length for block in anatomy.blocks}
    for tensor, (name, shape, dimensions, known) in zip(_firsts(anatomy), tensor_rows(anatomy), strict=True):
        heading, own = "outside the blocks", name
        if tensor.block:
            before, _, own = name.partition("*.")
            heading = f"{before}* ({tensor.block[0]}: {lengths.get(tensor.block[0], '?')} blocks)"
        lines = [f"  {own}  {shape}", *_wrapped(dimensions.split(" , "), width), *_wrapped([known], width)]
        groups.setdefault(heading, {})["\n".join(lines)] = ""
    parts = [heading + "\n" + "\n".join(entries) for heading, entries in groups.items()]
    return "\n\n".join([axes, *parts])


def _wrapped(words: list[str], width: int) -> list[str]:
    return textwrap.wrap(
        ", ".join(words), width, initial_indent="      ", subsequent_indent="        ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _firsts(anatomy: Anatomy) -> list[TensorAnatomy]:
    """The first tensor of each row of `tensor_rows`."""
    rows: dict[tuple[str, str, str, str], TensorAnatomy] = {}
    for tensor in anatomy.tensors.values():
        rows.setdefault(_row(tensor), tensor)
    return list(rows.values())


def _row(tensor: TensorAnatomy) -> tuple[str, str, str, str]:
    dimensions = " , ".join(f"{d.role}[{d.layout}]" for d in tensor.dimensions)
    known = "tied to " + tensor.tied_to if tensor.tied_to else ", ".join(_sources(tensor))
    return _folded(tensor), " x ".join(map(str, tensor.shape)), dimensions, known


def _sources(tensor: TensorAnatomy) -> Iterable[str]:
    return dict.fromkeys(d.source for d in tensor.dimensions)


def _folded(tensor: TensorAnatomy) -> str:
    return folded(tensor.name) if tensor.block else tensor.name


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows as plain aligned lines, the first of them headings. Names are not cut, because a cut name can mean
    several tensors.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
