"""From the maps of axes to the map of a dimension that is laid out along several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from meristem.algebra import AxisMap, Layout


def expand(layout: Layout, maps: Mapping[str, AxisMap]) -> AxisMap:
    """The map of a whole dimension. New units within a head stay silent in queries, so that keys and values are free."""
    within = [axis for axis in maps if axis.endswith("head_dim") and maps[axis].fresh is not None]
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
            is_query = any(str(factor).endswith("group") or _is_heads(str(factor)) for factor in term)
            grown = Layout((term,)).expand(queries if is_query else maps)
        total = grown if total is None else total.direct_sum(grown)
    assert total is not None
    return total


def _is_heads(axis: str) -> bool:
    return axis.endswith("heads") and not axis.endswith("kv_heads")


def axes_of(layout: Layout) -> set[str]:
    """The axes of a layout, with `heads` spelt out as `kv_heads group`."""
    names = set(layout.axes())
    for heads in [name for name in names if name.endswith("heads") and not name.endswith("kv_heads")]:
        names = (names - {heads}) | {heads.replace("heads", "kv_heads"), heads.replace("heads", "group")}
    return names
