"""Which entries of a grown network are old, copied or fresh: from the plans that made it, or from
`meristem.json`.

The methods of one growth add up: what one of them made fresh stays fresh, however often the next ones copy
it. A network that grows a second time is old as a whole, whatever the first growth added. The provenance of
the first growth is kept as `before`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from meristem.errors import MeristemError, nearest
from meristem.growth.plans.origins import COPIED, KINDS, Kind, Piece
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.tensor_origins import (
    Step,
    TensorOrigin,
    labels_of,
    step_as_dict,
    step_of,
    step_of_dict,
    step_of_parents,
)


@dataclass(frozen=True)
class Provenance:
    """Which entries of a grown network are old, copied or fresh. Kept as maps of units; masks are made when
    they are needed.

    Attributes:
        steps: one step for each method of the growth, in their order.
        ties: {name: the name in the last step of the tensor that it shares}.
        before: the provenance of the network that grew, if an earlier growth made it.
    """

    steps: tuple[Step, ...]
    ties: Mapping[str, str]
    before: Provenance | None = None

    @staticmethod
    def of(plans: Sequence[GrowthPlan], before: Provenance | None = None) -> Provenance:
        """The provenance of the network that these plans make one after another."""
        steps = [step_of(plan, plan.own_names) for plan in plans[:-1]]
        last = plans[-1]
        return Provenance((*steps, step_of(last, {name: name for name in last.tensors})), _ties(last), before)

    @staticmethod
    def of_parents(plans: Sequence[GrowthPlan], same_as: Sequence[int], as_experts: bool) -> Provenance:
        """The provenance of a fusion (see `tensor_origins.step_of_parents`)."""
        return Provenance((step_of_parents(plans, same_as, as_experts),), _ties(plans[0]))

    @staticmethod
    def of_mean(model: nn.Module) -> Provenance:
        """The provenance of a mean of networks of one size: every entry is a mixture."""
        known: dict[int, str] = {}
        own = {name: known.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}
        step = {
            name: TensorOrigin((Piece((name,), COPIED, (None,) * tensor.dim(), tuple(tensor.shape)),))
            for name, tensor in model.state_dict().items()
            if own[name] == name
        }
        return Provenance((step,), {name: first for name, first in own.items() if name != first})

    def after(self, before: Provenance | None) -> Provenance:
        """This provenance with the record of an earlier growth that made the first network."""
        if before is None:
            return self
        return replace(self, before=self.before.after(before) if self.before else before)

    @property
    def growths(self) -> int:
        """How many growths one after another made this network."""
        return 1 + (self.before.growths if self.before else 0)

    @property
    def since_first(self) -> Provenance:
        """The provenance relative to the first network of all growths: what any of them added is new.

        ms.freeze_old(model, ms.provenance("OUT").since_first)
        """
        if self.before is None:
            return self
        first = self.before.since_first
        last = first.steps[-1]
        whole = {**last, **{name: last[own] for name, own in first.ties.items()}}
        return Provenance((*first.steps[:-1], whole, *self.steps), self.ties)

    @property
    def names(self) -> list[str]:
        """The names of its tensors. Tied tensors occur under each of their names."""
        return [*self.steps[-1], *self.ties]

    def mask(self, name: str, kind: Kind) -> Tensor:
        """Which entries of a tensor are of one kind: bool, with the shape of the tensor.

        Args:
            name: the name in the state dict of the grown network.
            kind: "old", "copied" or "fresh".

        Raises:
            MeristemError: if there is no such name or kind.
        """
        if kind not in KINDS:
            raise MeristemError(f"an entry is old, copied or fresh, not {kind!r}")
        return self.labels(name) == KINDS.index(kind)

    def masks(self, name: str) -> dict[Kind, Tensor]:
        """All three masks of a tensor: {kind: bool, with the shape of the tensor}."""
        labels = self.labels(name)
        return {kind: labels == number for number, kind in enumerate(KINDS)}

    def labels(self, name: str) -> Tensor:
        """The kind of each entry of a tensor, as its index in `KINDS`: int8, with the shape of the tensor."""
        own = self.ties.get(name, name)
        if own not in self.steps[-1]:
            raise MeristemError(f"the grown network has no tensor {name!r}; {nearest(name, self.names)}")
        return labels_of(self.steps, own).contiguous()

    def counts(self) -> dict[Kind, int]:
        """How many entries of each kind the network has. Tied entries count once."""
        return dict(zip(KINDS, self._totals, strict=True))

    @cached_property
    def _totals(self) -> list[int]:
        totals = torch.zeros(len(KINDS), dtype=torch.long)
        for name, origin in self.steps[-1].items():
            if len(self.steps) == 1:
                totals += origin.counts()
            else:
                totals += torch.bincount(self.labels(name).flatten().long(), minlength=len(KINDS))
        return totals.tolist()

    def check(self, model: nn.Module) -> None:
        """Raises MeristemError if this is the provenance of another network, whose tensors have other names
        or shapes.
        """
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
        """The content for `meristem.json`: each map of units once, what every tensor takes from them, the
        number of entries of each kind, and the same for earlier growths.
        """
        return {
            "entries": self.counts(),
            "steps": [step_as_dict(step) for step in self.steps],
            "ties": dict(self.ties),
            **({"before": self.before.as_dict()} if self.before else {}),
        }

    @staticmethod
    def of_dict(content: Any) -> Provenance:
        """The provenance that `as_dict` wrote. Raises MeristemError for anything else."""
        try:
            steps = tuple(step_of_dict(step) for step in content["steps"])
            ties = {str(name): str(own) for name, own in content["ties"].items()}
            if not steps or not all(own in steps[-1] for own in ties.values()):
                raise ValueError("its ties name no tensor")
            before = Provenance.of_dict(content["before"]) if "before" in content else None
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise MeristemError(f"this provenance cannot be read: {error!r}") from error
        return Provenance(steps, ties, before)


def _ties(plan: GrowthPlan) -> dict[str, str]:
    return {name: own for name, own in plan.own_names.items() if name != own}
