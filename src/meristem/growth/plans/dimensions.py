"""From the maps of axes to the map of a dimension that consists of several axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from meristem.algebra import AxisMap, Layout
from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import kind_of
from meristem.anatomy.heads import GROUP, HEAD_DIM, Heads, are_queries


def expand(layout: Layout, maps: Mapping[str, AxisMap]) -> AxisMap:
    """The map of a whole dimension. New units within a head stay silent in queries, so that those of keys and
    values may have any value.
    """
    within = [axis for axis in maps if kind_of(axis) == HEAD_DIM and maps[axis].fresh is not None]
    if not within:
        return layout.expand(maps)
    queries = {**maps, **{axis: replace(maps[axis], fresh=None) for axis in within}}
    return _expand_terms(layout.spread(), maps, queries)


def _expand_terms(layout: Layout, maps: Mapping[str, AxisMap], queries: Mapping[str, AxisMap]) -> AxisMap:
    total: AxisMap | None = None
    for term in layout.terms:
        if isinstance(term[-1], Layout):  # products that end in a sum
            inner = _expand_terms(term[-1], maps, queries)
            grown = Layout((term[:-1],)).expand(maps).kron(inner) if term[:-1] else inner
        else:
            is_query = any(isinstance(f, str) and (kind_of(f) == GROUP or are_queries(f)) for f in term)
            grown = Layout((term,)).expand(queries if is_query else maps)
        total = grown if total is None else total.direct_sum(grown)
    assert total is not None
    return total


def inner_layouts(anatomy: Anatomy) -> set[str]:
    """Layouts such as "4 hidden" that some tensor writes, some tensor reads, and no norm measures:
    feed-forward units, a fixed number for each unit of the stream. If the stream is padded with its mean,
    these are copied, because readers receive what a nonlinearity makes from a mean.
    """
    by_role: dict[str, set[str]] = {}
    for dimension in (d for tensor in anatomy.tensors.values() for d in tensor.dimensions):
        if any(isinstance(factor, int) for term in dimension.layout.terms for factor in term):
            by_role.setdefault(dimension.role, set()).add(str(dimension.layout))
    return by_role.get("write", set()) & by_role.get("read", set()) - by_role.get("gain", set())


def sizes_after(anatomy: Anatomy, maps: Mapping[str, AxisMap]) -> dict[str, int]:
    """The axis sizes of the large network."""
    sizes = {**anatomy.sizes, **{axis: axis_map.new_size for axis, axis_map in maps.items()}}
    for regrouped in [axis for axis in sizes if axis not in anatomy.sizes]:
        heads = Heads.of(regrouped)
        sizes[heads.group] = sizes.pop(regrouped) // sizes[heads.kv_heads]
    return sizes
