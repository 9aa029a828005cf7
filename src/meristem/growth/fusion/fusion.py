"""A fused network and everything that is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from meristem.certificates import Certificate
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.provenance import Provenance


@dataclass(frozen=True)
class Fusion:
    """A fused network and everything that is known about it. `ms.fuse_with_certificate` makes it.

    Attributes:
        model: the fused network.
        plans: one plan for each parent. Empty for `Rebasin`.
        weights: the weight of each parent in the mean.
        certificate: how far the logits of `model` are from the weighted mean of the parents' logits, or None
            if that was not measured.
        exact: whether the fusion promises to be that mean. It does if the parents are one network. It also
            does if their configs compute the same, no norm runs over the units of several parents, and the
            logits are not capped.
        methods: the method and its options, as recorded in `meristem.json`.
        same_as: for each parent, the number of the first parent that has the same weights.
    """

    model: nn.Module
    plans: tuple[GrowthPlan, ...]
    weights: tuple[float, ...]
    certificate: Certificate | None
    exact: bool
    methods: tuple[dict[str, Any], ...]
    same_as: tuple[int, ...] = ()

    @property
    def as_experts(self) -> bool:
        """Whether the parents are the experts of a mixture."""
        return any(plan.reached is not None for plan in self.plans)

    @property
    def provenance(self) -> Provenance:
        """Which entries are old (those of one parent), copied (a second copy, or a mixture of several
        parents) or fresh.
        """
        if not self.plans:
            return Provenance.of_mean(self.model)
        return Provenance.of_parents(self.plans, self.same_as, self.as_experts)
