"""Where the entries of a grown network come from: old, copied, or fresh.

An entry is *old* if it stands for one of the small network, the first of its copies; *copied* if it is a further copy of one,
or a mixture of several; *fresh* if it has no source: a padded unit, an output projection that is silenced. Several growths
in turn add up: what one has made fresh stays fresh, however often the next one copies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from meristem.algebra import AxisMap
from meristem.errors import MeristemError, nearest
from meristem.growth.plan import GrowthPlan
from meristem.growth.tensor_plan import TensorPlan

Kind = Literal["old", "copied", "fresh"]
KINDS: tuple[Kind, ...] = ("old", "copied", "fresh")  # a label is the place in this row; the larger one wins
OLD, COPIED, FRESH = range(3)


@dataclass(frozen=True)
class Provenance:
    """Kept as the plans' axis maps; masks are made when they are asked for."""

    plans: tuple[GrowthPlan, ...]

    @staticmethod
    def of(plans: Sequence[GrowthPlan]) -> Provenance:
        """The provenance of what these plans, applied in turn, have made."""
        return Provenance(tuple(plans))

    def mask(self, name: str, kind: Kind) -> Tensor:
        """Bool, shaped like the tensor: which of its entries are of a kind.

        Args:
            name: in the grown network's state dict.
            kind: "old", "copied" or "fresh".

        Raises:
            MeristemError: for a name or a kind that there is not.
        """
        if kind not in KINDS:
            raise MeristemError(f"an entry is old, copied or fresh; asked for {kind!r}")
        return self.labels(name) == KINDS.index(kind)

    def labels(self, name: str) -> Tensor:
        """int8, shaped like the tensor: the place in `KINDS` of each entry."""
        if name not in self.plans[-1].shapes:
            raise MeristemError(f"the grown network has no tensor {name!r}; {nearest(name, self.plans[-1].shapes)}")
        return _labels(self.plans, name)

    def counts(self) -> dict[Kind, int]:
        """How many entries of each kind the network's parameters have; tied ones count once."""
        totals = torch.zeros(len(KINDS), dtype=torch.long)
        for name in self.plans[-1].tensors:
            totals += torch.bincount(self.labels(name).flatten().long(), minlength=len(KINDS))
        return dict(zip(KINDS, totals.tolist(), strict=True))


def _labels(plans: Sequence[GrowthPlan], name: str) -> Tensor:
    plan = plans[-1]
    tensor_plan = plan.tensors[plan.own_names[name]]
    labels = torch.full((), _layer_label(plan, tensor_plan), dtype=torch.int8).expand(plan.shapes[name])
    if len(plans) > 1:
        before = [_labels(plans[:-1], term.source) for term in tensor_plan.terms]
        inherited = torch.stack(before).amax(0)
        for dimension, axis_map in enumerate(tensor_plan.maps):
            inherited = inherited if axis_map is None else _inherit(inherited, dimension, axis_map)
        labels = torch.maximum(labels, inherited)
    for dimension, axis_map in enumerate(tensor_plan.maps):
        if axis_map is not None:
            shape = [1] * labels.dim()
            shape[dimension] = -1
            labels = torch.maximum(labels, unit_labels(axis_map).view(shape))
    return labels.clone()


def _inherit(labels: Tensor, dimension: int, axis_map: AxisMap) -> Tensor:
    """The label of each new unit's source; of a mixture, the largest there is."""
    index = axis_map.heard.index
    if index is not None:
        return labels.index_select(dimension, index)
    shape = list(labels.shape)
    shape[dimension] = axis_map.new_size
    return labels.amax(dimension, keepdim=True).expand(shape)


def unit_labels(axis_map: AxisMap) -> Tensor:
    """(new_size,) int8: whether each new unit of an axis is old, copied or fresh."""
    heard = axis_map.heard
    silent = heard.sourceless()
    if heard.index is None:
        return torch.where(silent, FRESH, COPIED).to(torch.int8)
    place = torch.where(silent, axis_map.new_size, torch.arange(axis_map.new_size))
    first = torch.full((axis_map.old_size,), axis_map.new_size).scatter_reduce(0, heard.index, place, reduce="amin")
    label = torch.where(first[heard.index] == torch.arange(axis_map.new_size), OLD, COPIED)
    return torch.where(silent, FRESH, label).to(torch.int8)


def _layer_label(plan: GrowthPlan, tensor_plan: TensorPlan) -> int:
    """What follows from the layer alone: the first copy of a layer is old, silenced outputs are fresh."""
    if tensor_plan.scale == 0:
        return FRESH
    if len(tensor_plan.terms) > 1:
        return COPIED
    layer_map = plan.layer_map(tensor_plan.name)
    if layer_map is None:
        return OLD
    place = plan.place(tensor_plan.name)
    if layer_map[place].silent and not tensor_plan.silent:  # a gain that block has handed on (post-norm)
        return OLD
    source = layer_map[place].sources[0][0]
    first = next(i for i, layer in enumerate(layer_map) if layer.sources[0][0] == source and not layer.silent)
    return OLD if place == first else COPIED
