"""The layouts that a dimension may have, in order of precedence: overrides, conventions, shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import nn

from meristem.algebra import Layout
from meristem.anatomy.axis_ref import AxisRef, kind_of, part_of, rest_of
from meristem.anatomy.conventions import ATTENTION_CLASS, CROSS_SCOPE, DECODER_SCOPE, ENCODER_SCOPE, LAYOUTS
from meristem.anatomy.heads import GROUP, HEAD_DIM, KV_HEADS, Heads, counts_heads
from meristem.anatomy.overrides import Override
from meristem.anatomy.roles import owner_and_parameter

Sizes = Mapping[str, int]
HEAD_DIMS = (HEAD_DIM, "key_head_dim")  # the kinds of axes within a head


def candidates(
    name: str, side: str, size: int, owners: Mapping[str, nn.Module], sizes: Sizes, override: Override
) -> Iterator[tuple[str, Layout]]:
    """(how it is known, layout) for one dimension.

    Args:
        name: the name of the tensor in the state dict.
        side: "in" for a dimension that consumes features, "out" for others.
        size: the size of the dimension in the present network.
        owners: {path: module}, for all modules.
        sizes: the sizes of all axes, with `heads`.
        override: facts about the model type.
    """
    path, parameter = owner_and_parameter(name)
    for pattern, where, layout in override.layouts:
        if where == side and (re.search(pattern, path) or re.search(pattern, name)):
            yield "override", Layout.parse(layout)
    groups = getattr(owners[path], "groups", 1)
    if side == "in" and isinstance(groups, int) and groups > 1:  # a convolution reads one group's share of its channels
        yield from (
            ("grouped convolution", Layout(((part_of(a, groups),),))) for a in sizes if sizes[a] == size * groups
        )
    leaf = path.rpartition(".")[2] if parameter in ("weight", "bias") else parameter
    ancestors = [type(owners[ancestor]).__name__ for ancestor in _ancestors(path, parameter)]
    scopes = _scopes(path, sizes)
    for kind, pattern, where, layouts in LAYOUTS:
        if where == side and re.fullmatch(pattern, leaf) and any(re.search(kind, a) for a in ancestors):
            named = [Layout.parse(_scoped(layout, scope)) for layout in layouts for scope in scopes]
            yield from ((f"convention of {leaf}", layout) for layout in named)
            if any(re.search(ATTENTION_CLASS, a) for a in ancestors):
                yield from _per_head(size, sizes)
                if any(kind_of(axis) in HEAD_DIMS for axis in sizes):
                    return  # heads must not pass for plain units: a size that no head layout explains is an error
    if side == "out" and not getattr(owners[path], "is_concatenated", True):  # gate and up side by side for each unit
        yield from (("gate and up of each unit", Layout(((axis, 2),))) for axis in sizes if kind_of(axis) == "ffn")
    yield from _simple(size, sizes)


def _ancestors(path: str, parameter: str) -> list[str]:
    """The modules around a weight. For any other parameter, those around it and the one that owns it."""
    parts = path.split(".")
    last = len(parts) if parameter in ("weight", "bias") else len(parts) + 1
    return [".".join(parts[:i]) for i in range(1, last)]


def _scopes(path: str, sizes: Sizes) -> list[str]:
    """The scopes that have heads, with the one that the path names first."""
    scopes = [AxisRef.parse(axis).scope for axis in sizes if kind_of(axis) == KV_HEADS]
    parts = path.split(".")
    parts += [CROSS_SCOPE] if any(part.startswith(CROSS_SCOPE) for part in parts) else []
    named = next((f"{s}_" for s in (CROSS_SCOPE, ENCODER_SCOPE, DECODER_SCOPE) if s in parts and f"{s}_" in scopes), "")
    return sorted(scopes, key=lambda scope: scope != named)


def _scoped(layout: str, scope: str) -> str:
    return re.sub(r"\b(kv_heads|heads|group|head_dim|key_head_dim)\b", lambda m: scope + m.group(), layout)


def _per_head(size: int, sizes: Sizes) -> Iterator[tuple[str, Layout]]:
    """Heads (or key-value heads) times a block of another size (multi-latent attention)."""
    for axis, count in sizes.items():
        if counts_heads(axis) and size % count == 0:
            yield "a number for each head", Layout(((axis, size // count),))
    for axis in (axis for axis in sizes if kind_of(axis) == KV_HEADS):
        width = sizes[axis] * sizes.get(head_dim := Heads.of(axis).head_dim, 0)
        if width > size and width % size == 0 and sizes[axis] % (width // size) == 0:
            yield "some of the heads", Layout(((part_of(axis, width // size), head_dim),))  # only some of the heads
    for axis in (axis for axis in sizes if kind_of(axis) == KV_HEADS and sizes[axis] % 2 == 0):
        if size % (sizes[axis] // 2) == 0:
            yield "half of the heads", Layout(((part_of(axis, 2), size // (sizes[axis] // 2)),))


def _simple(size: int, sizes: Sizes) -> Iterator[tuple[str, Layout]]:
    """One axis, a multiple of one, heads times their size, an axis and a constant, two axes. The simplest
    come first.
    """
    yield from (("one axis", Layout(((axis,),))) for axis in sizes)
    plain = [axis for axis in sizes if not counts_heads(axis) and kind_of(axis) != GROUP]
    yield from (("a multiple of an axis", Layout(((size // sizes[a], a),))) for a in plain if size % sizes[a] == 0)
    yield from _per_head(size, sizes)
    for heads in (axis for axis in sizes if counts_heads(axis)):
        for block in (axis for axis in sizes if kind_of(axis) in HEAD_DIMS):
            yield "heads by their width", Layout(((heads, block),))
            if size % (sizes[heads] * sizes[block]) == 0:
                yield "a multiple of all heads", Layout(((size // (sizes[heads] * sizes[block]), heads, block),))
    for axis in (axis for axis in sizes if size > sizes[axis]):
        rest = size - sizes[axis]
        terms = ((rest,), (axis,)) if axis == "positions" else ((axis,), (rest,))
        yield "an axis and a constant", Layout(terms)  # OPT begins to count at 2
    for axis in plain:
        count, rest = divmod(size, sizes[axis])
        if count > 1 and 0 < rest < 16:
            yield "a multiple of an axis and a constant", Layout(((count, axis), (rest,)))
    pairs = [(a, b) for a in plain for b in plain]
    yield from (
        ("two axes, one after the other", Layout(((a,), (b,)))) for a, b in pairs if sizes[a] + sizes[b] == size
    )
    parts = [axis for axis in plain if sizes[axis] % size == 0]
    yield from (("a part of an axis", Layout(((part_of(axis, sizes[axis] // size),),))) for axis in parts)
    halves = [axis for axis in plain if sizes[axis] % 2 == 0 and size % (sizes[axis] // 2) == 0]
    yield from (("halves of an axis", Layout(((size // (sizes[a] // 2), part_of(a, 2)),))) for a in halves)
    for n in (3, 4, 8):  # DINOv2's SwiGLU: two thirds of four times the width, rounded up
        shares = [axis for axis in plain if sizes[axis] % n == 0 and size % (sizes[axis] // n) == 0]
        yield from (("shares of an axis", Layout(((size // (sizes[a] // n), part_of(a, n)),))) for a in shares)
    yield from (("each unit of two axes", Layout(((a, b),))) for a, b in pairs if sizes[a] * sizes[b] == size)
    yield from (
        ("an axis without its first units", Layout(((rest_of(a, sizes[a] - size),),))) for a in plain if sizes[a] > size
    )
