"""Heads: each key-value head serves a group of query heads, so `heads` is `kv_heads group`, in every scope.

Anatomies count key-value heads and groups. Layouts may also name query heads, which follow from both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from meristem.anatomy.axis_ref import AxisRef, kind_of

KV_HEADS, GROUP, HEADS, HEAD_DIM = "kv_heads", "group", "heads", "head_dim"
COUNTS = (KV_HEADS, HEADS)  # the kinds that count heads
UNITS = (KV_HEADS, GROUP, HEADS)  # the kinds whose units are heads


@dataclass(frozen=True)
class Heads:
    """The names of the axes of the heads of one scope."""

    kv_heads: str
    group: str
    heads: str
    head_dim: str

    @staticmethod
    def of(axis: str) -> Heads:
        """The heads of the scope of an axis.

        Args:
            axis: any axis of the scope, such as "encoder_group".
        """
        ref = AxisRef.parse(axis)
        return Heads(*(ref.of_kind(kind) for kind in (KV_HEADS, GROUP, HEADS, HEAD_DIM)))


def counts_heads(axis: str) -> bool:
    """Whether its units are query or key-value heads."""
    return kind_of(axis) in COUNTS


def are_queries(axis: str) -> bool:
    """Whether its units are query heads."""
    return kind_of(axis) == HEADS


def counted_by(axis: str) -> str:
    """The axis whose units an anatomy counts: the key-value heads for query heads, and the axis itself for
    others.
    """
    return Heads.of(axis).kv_heads if are_queries(axis) else axis


def spelt_out(axes: Iterable[str], known: Collection[str]) -> set[str]:
    """The same axes. Query heads that are not in `known` are replaced by `kv_heads` and `group`."""
    names: set[str] = set()
    for axis in axes:
        heads = Heads.of(axis)
        names |= {heads.kv_heads, heads.group} if are_queries(axis) and axis not in known else {axis}
    return names


class AxisSizes(dict[str, int]):
    """Axis sizes that also contain the sizes of parts of axes."""

    def __missing__(self, axis: str) -> int:
        ref = AxisRef.parse(axis)
        if ref.part is None:
            raise KeyError(axis)
        return ref.part.size(self[ref.whole])


def with_heads(sizes: Mapping[str, int]) -> AxisSizes:
    """The sizes, with `heads` for every `kv_heads`, and parts on demand."""
    heads = {
        Heads.of(axis).heads: size * sizes[Heads.of(axis).group]
        for axis, size in sizes.items()
        if kind_of(axis) == KV_HEADS and Heads.of(axis).group in sizes
    }
    return AxisSizes({**sizes, **heads})
