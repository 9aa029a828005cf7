"""Convolutions and norms in groups: each group has its own share of the channels, so channels grow within
their groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import lcm

from torch import nn

from meristem.algebra import Layout
from meristem.anatomy.axis_ref import (
    are_pairs,
    divisor_of,
    is_frequencies,
    is_part,
    kind_of,
    pairs_of,
    part_of,
    whole_of,
)
from meristem.anatomy.heads import HEAD_DIM, Heads, counted_by
from meristem.anatomy.roles import owner_and_parameter
from meristem.anatomy.structure import TensorAnatomy


def in_groups(
    tensors: Mapping[str, TensorAnatomy], owners: Mapping[str, nn.Module], known: Mapping[str, int]
) -> dict[str, TensorAnatomy]:
    """The same tensors, with every axis that a grouped convolution or norm divides written in that many
    parts, wherever it occurs.

    A convolution of 4 groups over `hidden` reads `over4_hidden` in each. Every `hidden` then becomes `4
    over4_hidden`, so that copies of a channel stay in the group of the original.

    Args:
        tensors: the tensors by name.
        owners: {path: module}, for all modules.
        known: {axis: number of groups} from elsewhere.
    """
    groups = {**_groups(tensors, owners), **known}
    if not groups:
        return dict(tensors)
    changed = {}
    for name, tensor in tensors.items():
        dimensions = tuple(replace(d, layout=_split(d.layout, groups).simplified()) for d in tensor.dimensions)
        changed[name] = replace(tensor, dimensions=dimensions)
    return changed


def _groups(tensors: Mapping[str, TensorAnatomy], owners: Mapping[str, nn.Module]) -> dict[str, int]:
    """{axis: number of groups}, from convolutions that read one group's part of an axis, and from what they
    write.
    """
    groups: dict[str, int] = {}
    for tensor in tensors.values():
        owner = owners[owner_and_parameter(tensor.name)[0]]
        if isinstance(owner, nn.GroupNorm) and 1 < owner.num_groups < owner.num_channels:
            for axis in {counted_by(a) for d in tensor.dimensions for a in d.layout.axes()}:
                groups[whole_of(axis)] = lcm(owner.num_groups * divisor_of(axis), groups.get(whole_of(axis), 1))
        count = getattr(owner, "groups", 1)
        if not isinstance(count, int) or count == 1:
            continue
        read = {a for d in tensor.dimensions if d.role == "read" for a in d.layout.axes()}
        if not any(axis == part_of(whole_of(axis), count) for axis in read):
            continue
        written = {a for d in tensor.dimensions if d.role == "write" for a in d.layout.axes() if kind_of(a) != HEAD_DIM}
        for axis in {whole_of(a) for a in read} | {counted_by(a) for a in written}:
            groups[axis] = lcm(count, groups.get(axis, 1))
    return groups


def _split(layout: Layout, groups: Mapping[str, int]) -> Layout:
    terms = []
    for term in layout.terms:
        factors: list[str | int | Layout] = []
        for factor in term:
            if isinstance(factor, str) and counted_by(factor) in groups and factor not in groups:
                count = groups[counted_by(factor)]
                factors += [count, part_of(counted_by(factor), count), Heads.of(factor).group]
            elif isinstance(factor, str) and factor in groups:
                factors += [groups[factor], part_of(factor, groups[factor])]
            elif (
                isinstance(factor, str)
                and not is_frequencies(factor)
                and not are_pairs(
                    factor
                )  # neighbours, so that a group of channels holds both copies of each of its own
                and is_part(factor)
                and whole_of(factor) in groups
            ):
                factors += _part_in_groups(factor, groups[whole_of(factor)])
            else:
                factors.append(factor)
        terms.append(tuple(factors))
    return Layout(tuple(terms))


def _part_in_groups(part: str, groups: int) -> list[str | int]:
    """A larger part of an axis, in terms of the parts of its groups."""
    count = divisor_of(part)
    return [groups // count, part_of(whole_of(part), groups)] if groups % count == 0 else [part]


def in_pairs(tensors: Mapping[str, TensorAnatomy]) -> dict[str, TensorAnatomy]:
    """The same tensors, with the stream as pairs of units wherever it occurs (see `Override.paired`)."""

    def paired(layout: Layout) -> Layout:
        split = {"hidden": (pairs_of("hidden"), 2)}
        terms = (tuple(f for factor in term for f in split.get(factor, (factor,))) for term in layout.terms)  # type: ignore
        return Layout(tuple(terms)).simplified()

    return {
        name: replace(tensor, dimensions=tuple(replace(d, layout=paired(d.layout)) for d in tensor.dimensions))
        for name, tensor in tensors.items()
    }
