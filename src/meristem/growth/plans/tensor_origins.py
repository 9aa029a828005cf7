"""Where whole tensors come from: the pieces of each, as one growth or one fusion has made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from meristem.anatomy.unit_lists import units_of
from meristem.growth.plans.origins import COPIED, FRESH, NOWHERE, OLD, Piece, Units
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.tensor_plan import TensorPlan
from meristem.growth.plans.upcycle_plan import EXPERT

Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class TensorOrigin:
    """Where one tensor comes from: its pieces, one after another along a dimension.

    Attributes:
        over: this many consecutive pieces have one shape and are superposed (what each parent of a fusion
            adds to the tensor). An entry then has the label of the oldest of them.
    """

    pieces: Pieces
    along: int = 0
    over: int = 1

    @property
    def layers(self) -> list[Pieces]:
        """The pieces that are superposed, one group for each position."""
        return [self.pieces[start : start + self.over] for start in range(0, len(self.pieces), self.over)]

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.pieces[0].shape)
        if len(self.layers) > 1:
            shape[self.along] = sum(layer[0].shape[self.along] for layer in self.layers)
        return tuple(shape)

    def counts(self) -> Tensor:
        """(3,) long: how many entries of each kind there are, by this growth alone."""
        return torch.stack([_counts_of_layer(layer) for layer in self.layers]).sum(0)

    def as_dict(self, tables: dict[Units, int]) -> dict[str, Any]:
        """The content for JSON. `tables` collects the maps of units."""
        pieces = [piece.as_dict(tables) for piece in self.pieces]
        over = {"over": self.over} if self.over > 1 else {}
        return {"along": self.along, **over, "pieces": pieces} if len(pieces) > 1 else pieces[0]

    @staticmethod
    def of_dict(content: Mapping[str, Any], tables: Sequence[Units]) -> TensorOrigin:
        """The inverse of `as_dict`. Raises KeyError, ValueError, TypeError or IndexError for anything
        else.
        """
        if "pieces" not in content:
            return TensorOrigin((Piece.of_dict(content, tables),))
        pieces, over = tuple(Piece.of_dict(piece, tables) for piece in content["pieces"]), int(content.get("over", 1))
        if over < 1 or not pieces or len(pieces) % over:
            raise ValueError(f"{len(pieces)} parts cannot overlap by {over}")
        return TensorOrigin(pieces, int(content["along"]), over)


Step = Mapping[str, TensorOrigin]  # one growth: {tensor of the network that it made: where it comes from}


def _counts_of_layer(layer: Pieces) -> Tensor:
    """Old and copied entries of parents are side by side, unless all parents share the tensor."""
    found = torch.tensor([piece.counts() for piece in layer])
    if len(layer) == 1 or not any(layer[0].units):
        return found[0]
    held = found.sum(0)
    held[FRESH] = found[0].sum() - held[OLD] - held[COPIED]
    return held


def step_as_dict(step: Step) -> dict[str, Any]:
    """The content for JSON: the maps of units, each once, and what every tensor takes from them."""
    tables: dict[Units, int] = {}
    tensors = {name: origin.as_dict(tables) for name, origin in step.items()}
    return {"units": [str(units) for units in tables], "tensors": tensors}


def step_of_dict(content: Mapping[str, Any]) -> Step:
    """The inverse of `step_as_dict`. Raises what `TensorOrigin.of_dict` raises."""
    tables = [Units.parse(text) for text in content["units"]]
    return {name: TensorOrigin.of_dict(own, tables) for name, own in content["tensors"].items()}


def labels_of(steps: Sequence[Step], name: str) -> Tensor:
    """int8, with the shape of the tensor that the last step made: the index in `KINDS` of each entry,
    relative to the network before the first step.
    """
    origin = steps[-1][name]
    layers = [[_piece_labels(steps, piece) for piece in layer] for layer in origin.layers]
    found = [torch.stack(layer).amin(0) if len(layer) > 1 else layer[0] for layer in layers]
    return torch.cat(found, origin.along) if len(found) > 1 else found[0]


def _piece_labels(steps: Sequence[Step], piece: Piece) -> Tensor:
    labels = piece.own_labels()
    if len(steps) > 1 and piece.label != FRESH:
        labels = torch.maximum(labels, piece.inherited([labels_of(steps[:-1], source) for source in piece.sources]))
    return labels


def step_of(plan: GrowthPlan, names: Mapping[str, str]) -> Step:
    """What one plan has made. `names`: {name of the tensor in the result: name in the plan}."""
    return {name: _origin(plan, plan.tensors[own]) for name, own in names.items()}


def _origin(plan: GrowthPlan, tensor_plan: TensorPlan) -> TensorOrigin:
    return TensorOrigin(tuple(_piece(plan, part, tensor_plan.name) for part in tensor_plan.parts), tensor_plan.along)


def _piece(plan: GrowthPlan, part: TensorPlan, name: str) -> Piece:
    sources = tuple(term.source for term in part.terms)
    if part.drawn is not None:
        return Piece(sources, FRESH, (None,) * len(part.drawn.shape), part.drawn.shape)
    units = tuple(None if axis_map is None else Units.of(axis_map) for axis_map in part.maps)
    shape = plan.source.tensors[sources[0]].shape
    shape = part.shards.shape(shape) if part.shards else shape
    sizes = tuple(size if own is None else own.size for size, own in zip(shape, units, strict=True))
    return Piece(sources, _layer_label(plan, part, name), units, sizes, part.shards, part.redrawn)


def _layer_label(plan: GrowthPlan, part: TensorPlan, name: str) -> int:
    """What follows from the layer alone: the first copy of a layer is old, and silent outputs are fresh."""
    if part.scale == 0:
        return FRESH
    if len(part.terms) > 1 or part.further or _of_further_unit(plan, name):
        return COPIED
    layer_map = plan.layer_map(name)
    if layer_map is None:
        return OLD
    place = plan.place(name)
    if layer_map[place].silent and not part.silent:  # the gain of the block before (post-norm)
        return OLD
    source = layer_map[place].sources[0][0]
    first = next(i for i, layer in enumerate(layer_map) if layer.sources[0][0] == source and not layer.silent)
    return OLD if place == first else COPIED


def _of_further_unit(plan: GrowthPlan, name: str) -> bool:
    """Whether a tensor belongs to a module of one unit (the norm of a head, an expert), and an earlier unit
    copies the same.
    """
    for axis, unit, _, _ in units_of(name, plan.source.unit_lists):
        index = plan.axis_map(axis).write.index
        if index is not None and bool((index[:unit] == index[unit]).any()):
            return True
    return False


def step_of_parents(plans: Sequence[GrowthPlan], same_as: Sequence[int], as_experts: bool) -> Step:
    """What a fusion has made from its parents, each by its own plan.

    The units of a parent are old. What no parent holds is fresh. A tensor that the parents share is a mixture
    of theirs: copied. If a parent is an earlier one again, its units are copies of that one's.

    Args:
        plans: one plan for each parent.
        same_as: for each parent, the number of the first parent that has the same weights.
        as_experts: parent p is expert p, and everything else is the mean of the parents.
    """
    made = {}
    for name, first in plans[0].tensors.items():
        match = EXPERT.match(name) if as_experts else None
        if match is not None and match.group(2) is not None:  # experts each by itself
            parent = int(match.group(2))
            own = _of_parent(_piece(plans[parent], plans[parent].tensors[name], name), parent, same_as)
            made[name] = TensorOrigin((own,))
            continue
        pieces = [
            _of_parent(_piece(plan, plan.tensors[name].parts[number], name), parent, same_as, first.shards is not None)
            for number in range(len(first.parts))
            for parent, plan in enumerate(plans)
        ]
        pieces = pieces[:1] if first.drawn is not None else pieces
        made[name] = TensorOrigin(tuple(pieces), first.along, len(pieces) // len(first.parts))
    return made


def _of_parent(piece: Piece, parent: int, same_as: Sequence[int], stacked: bool = False) -> Piece:
    """A piece as this parent's part of a fusion. `stacked`: parents follow one another along its first
    dimension.
    """
    if piece.label == FRESH:
        return piece
    again = same_as[parent] != parent
    if stacked:
        count, own = len(same_as), (parent, 1, COPIED if again else OLD)
        runs = [(NOWHERE, parent, FRESH), (0, *own[1:]), (NOWHERE, count - parent - 1, FRESH)]
        units = (Units(tuple(run for run in runs if run[1])), *piece.units[1:])
        return replace(piece, units=units, parent=parent, label=OLD)
    mixed = not any(piece.units) and len(set(same_as)) > 1
    label = COPIED if mixed or (again and any(piece.units)) else OLD
    return replace(piece, label=label, parent=parent)
