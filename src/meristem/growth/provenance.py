"""What of a grown network is old, copied or fresh: from the plans that made it, or from what they left in `meristem.json`.

Several growths in turn add up: what one has made fresh stays fresh, however often the next one copies it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from meristem.errors import MeristemError, nearest
from meristem.growth.origins import COPIED, FRESH, KINDS, OLD, Kind, Piece, Units
from meristem.growth.plan import GrowthPlan
from meristem.growth.tensor_plan import TensorPlan

Pieces = tuple[Piece, ...]  # a tensor is these, laid behind each other


@dataclass(frozen=True)
class TensorOrigin:
    """Where one tensor comes from: its pieces, laid behind each other along a dimension."""

    pieces: Pieces
    along: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.pieces[0].shape)
        if len(self.pieces) > 1:
            shape[self.along] = sum(piece.shape[self.along] for piece in self.pieces)
        return tuple(shape)


Step = Mapping[str, TensorOrigin]  # one growth: {tensor of the network that it made: where it comes from}


@dataclass(frozen=True)
class Provenance:
    """Kept as maps of units; masks are made when they are asked for.

    Attributes:
        steps: one for each growth, in their order.
        ties: {name: the name in the last step of the tensor that it shares}.
    """

    steps: tuple[Step, ...]
    ties: Mapping[str, str]

    @staticmethod
    def of(plans: Sequence[GrowthPlan]) -> Provenance:
        """The provenance of what these plans, applied in turn, have made."""
        steps = tuple(
            {name: _origin(plan, plan.tensors[own]) for name, own in plan.own_names.items()} for plan in plans[:-1]
        )
        last = plans[-1]
        ties = {name: own for name, own in last.own_names.items() if name != own}
        return Provenance((*steps, {name: _origin(last, own) for name, own in last.tensors.items()}), ties)

    @property
    def names(self) -> list[str]:
        """The tensors that it knows, tied ones under each of their names."""
        return [*self.steps[-1], *self.ties]

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

    def masks(self, name: str) -> dict[Kind, Tensor]:
        """All three at once: {kind: bool, shaped like the tensor}."""
        labels = self.labels(name)
        return {kind: labels == number for number, kind in enumerate(KINDS)}

    def labels(self, name: str) -> Tensor:
        """int8, shaped like the tensor: the place in `KINDS` of each entry."""
        own = self.ties.get(name, name)
        if own not in self.steps[-1]:
            raise MeristemError(f"the grown network has no tensor {name!r}; {nearest(name, self.names)}")
        return _labels(self.steps, own).contiguous()

    def counts(self) -> dict[Kind, int]:
        """How many entries of each kind the network's tensors have; tied ones count once."""
        return dict(zip(KINDS, self._totals, strict=True))

    @cached_property
    def _totals(self) -> list[int]:
        totals = torch.zeros(len(KINDS), dtype=torch.long)
        for name, origin in self.steps[-1].items():
            if len(self.steps) == 1:
                totals += torch.tensor([piece.counts() for piece in origin.pieces]).sum(0)
            else:
                totals += torch.bincount(self.labels(name).flatten().long(), minlength=len(KINDS))
        return totals.tolist()

    def check(self, model: nn.Module) -> None:
        """Raises MeristemError if this is the provenance of another network: one with other tensors, or tensors of other shapes."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        known = {name: self.steps[-1][self.ties.get(name, name)].shape for name in self.names}
        for name in dict.fromkeys([*known, *shapes]):
            if known.get(name) != shapes.get(name):
                here, there = (
                    "missing" if shape is None else tuple(shape) for shape in (shapes.get(name), known.get(name))
                )
                raise MeristemError(
                    f"this is the provenance of another network: {name} is {here} here and {there} there; "
                    "pass the one of the growth that made this network"
                )

    def as_dict(self) -> dict[str, Any]:
        """For `meristem.json`: the maps of units, each once, what every tensor takes of them, and how many entries there are of
        each kind."""
        return {
            "entries": self.counts(),
            "steps": [_step_as_dict(step) for step in self.steps],
            "ties": dict(self.ties),
        }

    @staticmethod
    def of_dict(content: Any) -> Provenance:
        """What `as_dict` wrote. Raises MeristemError for anything else."""
        try:
            steps = tuple(_step_of_dict(step) for step in content["steps"])
            found = Provenance(steps, {str(name): str(own) for name, own in content["ties"].items()})
            if not steps or not all(own in steps[-1] for own in found.ties.values()):
                raise ValueError("its ties name no tensor")
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise MeristemError(f"this provenance cannot be read: {error!r}") from error
        return found


def _step_as_dict(step: Step) -> dict[str, Any]:
    tables: dict[Units, int] = {}
    tensors = {}
    for name, origin in step.items():
        pieces = [piece.as_dict(tables) for piece in origin.pieces]
        tensors[name] = {"along": origin.along, "pieces": pieces} if len(pieces) > 1 else pieces[0]
    return {"units": [str(units) for units in tables], "tensors": tensors}


def _step_of_dict(content: Mapping[str, Any]) -> Step:
    tables = [Units.parse(text) for text in content["units"]]
    return {
        name: TensorOrigin(tuple(Piece.of_dict(piece, tables) for piece in own["pieces"]), int(own["along"]))
        if "pieces" in own
        else TensorOrigin((Piece.of_dict(own, tables),))
        for name, own in content["tensors"].items()
    }


def _labels(steps: Sequence[Step], name: str) -> Tensor:
    origin = steps[-1][name]
    found = [_piece_labels(steps, piece) for piece in origin.pieces]
    return torch.cat(found, origin.along) if len(found) > 1 else found[0]


def _piece_labels(steps: Sequence[Step], piece: Piece) -> Tensor:
    labels = piece.own_labels()
    if len(steps) > 1 and piece.label != FRESH:
        labels = torch.maximum(labels, piece.inherited([_labels(steps[:-1], source) for source in piece.sources]))
    return labels


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
    """What follows from the layer alone: the first copy of a layer is old, silenced outputs are fresh."""
    if part.scale == 0:
        return FRESH
    if len(part.terms) > 1 or part.further:
        return COPIED
    layer_map = plan.layer_map(name)
    if layer_map is None:
        return OLD
    place = plan.place(name)
    if layer_map[place].silent and not part.silent:  # a gain that block has handed on (post-norm)
        return OLD
    source = layer_map[place].sources[0][0]
    first = next(i for i, layer in enumerate(layer_map) if layer.sources[0][0] == source and not layer.silent)
    return OLD if place == first else COPIED
