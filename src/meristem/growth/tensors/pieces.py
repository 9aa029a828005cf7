"""A weight computed in pieces of whole rows, for writers that do not need the whole weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from meristem.algebra import UnitMap
from meristem.anatomy import recycled
from meristem.growth.plans.plan import TensorPlan
from meristem.growth.tensors.apply import Fetch, changes_numbers, grow_tensor, makes_scaled_copies, scaled_copies
from meristem.growth.tensors.draws import rows_of_a_block
from meristem.growth.tensors.noisy_rows import Maps, Rows, drawn_shape, noisy_rows, rows_apart, spread_of
from meristem.makers import in_order

PIECE = 1 << 22  # bytes of a source that are grown and written at once, where rows can be grown apart
CACHED = 1 << 20  # bytes of it that are computed at once, to stay in the processor's cache
Look = Callable[[TensorPlan, Mapping[str, Tensor], int | tuple[int, int] | None, Tensor], None]


def grow_pieces(plan: TensorPlan, fetch: Fetch, look: Look | None = None) -> Iterator[tuple[list[int], Tensor]]:
    """A weight as `grow_tensor` computes it, in pieces of whole rows: (the first row of every place of the
    piece, piece).

    If new rows are copies of old ones, a piece is computed once for all its places. It is small enough to
    stay in the processor's cache until it is written. Other tensors are one piece.

    Args:
        plan: the plan of the tensor.
        fetch: a function that returns a source by its name.
        look: a function that is called with each piece before it is yielded (see `sampled.look`).
    """
    maps = [plan.unit_map(dimension) for dimension in range(len(plan.maps))]
    sources = {term.source: fetch(term.source) for term in plan.terms}
    first = sources[plan.terms[0].source]
    if plan.beside or plan.drawn or plan.shards:
        yield [0], grow_tensor(plan, fetch)
        return
    rows = maps[0] if maps else None
    runs = [(0, len(first))] if rows is None and first.dim() else rows.runs if rows is not None else None
    if first.dim() < 2 or runs is None or not makes_scaled_copies(plan, maps, "weight", first.dtype):
        if rows_apart(plan, maps):
            yield from _noisy_pieces(plan, first, maps, look)
            return
        whole = grow_tensor(plan, sources.__getitem__)
        if look is not None:
            look(plan, sources, None, whole)
        yield [0], whole
        return
    row_bytes = max(1, first.numel() * first.element_size() // max(1, len(first)))
    ends = {0, len(first)} | {end for start, length in runs for end in (start, start + length)}
    for a, b in _cut(sorted(ends), PIECE // row_bytes):
        places, place = [], 0
        for start, length in runs:
            if start <= a < start + length:
                places.append(place + a - start)
            place += length
        if places:
            piece = _rows(plan, sources, maps, a, b, CACHED // row_bytes)
            if look is not None:
                look(plan, sources, a, piece)
            yield places, piece


def grow_whole(plan: TensorPlan, fetch: Fetch) -> Tensor:
    """The tensor that `grow_tensor` computes. If rows can be computed separately, it is computed in pieces,
    so that nothing but the tensor itself is large.
    """
    maps = [plan.unit_map(dimension) for dimension in range(len(plan.maps))]
    more = plan.beside or plan.drawn or plan.shards
    if more or not rows_apart(plan, maps):
        return grow_tensor(plan, fetch)
    source = fetch(plan.terms[0].source)
    made = _empty(source, maps)
    for _ in _noisy_pieces(plan, source, maps, None, made):
        pass
    return made


def _empty(source: Tensor, maps: Maps) -> Tensor:
    """A tensor without values that has the shape of the grown `source`."""
    shape = _new_shape(source, maps)
    return recycled.empty(shape, source.dtype) if source.device.type == "cpu" else source.new_empty(shape)


def _new_shape(source: Tensor, maps: Maps) -> list[int]:
    return [size if m is None else m.new_size for m, size in zip(maps, source.shape, strict=True)]


def _noisy_pieces(
    plan: TensorPlan, source: Tensor, maps: Maps, look: Look | None, into: Tensor | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Rows whose copies all differ by their noise, computed a few at a time. They are rows of `into`, if it
    is given.
    """
    rows, spread = maps[0], spread_of(plan, source, maps)
    shape = _new_shape(source, maps)
    count = shape[0]
    together = rows_of_a_block(drawn_shape(plan, shape))
    row_bytes = max(1, math.prod(shape[1:]) * source.element_size())

    def made(first: int, last: int) -> Tensor:
        piece = source.new_empty(last - first, *shape[1:]) if into is None else into[first:last]
        for a, b in _cut([first, last], together):
            part, own = _old_rows(source, rows, a, b)
            piece[a - first : b - first] = noisy_rows(plan, part, [own, *maps[1:]], Rows((a, b), count, spread))
        if look is not None:
            look(plan, {plan.terms[0].source: source}, (first, last), piece)
        return piece

    step = max(1, PIECE // (row_bytes * together)) * together
    for (first, _), piece in in_order(made, _cut([0, count], step)):
        yield [first], piece


def _old_rows(source: Tensor, rows: UnitMap | None, first: int, last: int) -> tuple[Tensor, UnitMap | None]:
    """What the new rows from `first` to `last` are computed from, and the map that is still to be applied."""
    if rows is None:
        return source[first:last], None
    assert rows.index is not None
    assert rows.coefficient is not None
    index, coefficient = rows.index[first:last], rows.coefficient[first:last]
    at = int(index[0])
    consecutive = int(index[-1]) - at == len(index) - 1 and bool((index[1:] > index[:-1]).all())
    part = source[at : at + len(index)] if consecutive else source.index_select(0, index.to(source.device))
    if bool((coefficient == 1).all()):
        return part, None
    return part, UnitMap.select(torch.arange(len(index)), len(index), coefficient)


def is_copy(plan: TensorPlan) -> bool:
    """Whether a weight equals its source, number for number."""
    return (
        all(m is None for m in plan.maps)
        and not (plan.perturb or plan.beside or plan.drawn or plan.shards or plan.redrawn)
        and not changes_numbers(plan, [None] * len(plan.maps))
    )


def _rows(plan: TensorPlan, sources: Mapping[str, Tensor], maps: Maps, first: int, last: int, step: int) -> Tensor:
    """The old rows from `first` to `last` (exclusive), scaled, with their columns in all new places."""
    whole: Tensor | None = None
    for a, b in _cut([first, last], step):
        own = [maps[0] and maps[0].old_rows(a, b), *maps[1:]]
        part = scaled_copies(plan, lambda name, a=a, b=b: sources[name][a:b], "weight", own)
        whole = part.new_empty(last - first, *part.shape[1:]) if whole is None else whole
        whole[a - first : b - first] = part
    assert whole is not None
    return whole


def _cut(ends: Sequence[int], step: int) -> Iterator[tuple[int, int]]:
    """(a, b) of consecutive stretches that are no longer than `step` and stop at all `ends`."""
    for start, end in itertools.pairwise(ends):
        for a in range(start, end, max(1, step)):
            yield a, min(a + max(1, step), end)
