"""From a network and a list of methods to plans and the grown network, one method after another.

Each step starts from the anatomy that the step before it derived, so that nothing known about the network is
lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.growth.methods.method import Method
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.target import grown_anatomy
from meristem.growth.tensors.build import build


@dataclass(frozen=True)
class Steps:
    """The plan of each method, the network that the last one makes, and its anatomy."""

    plans: tuple[GrowthPlan, ...]
    model: nn.Module
    anatomy: Anatomy

    @property
    def promised(self) -> bool:
        """Whether every method claims to keep the function."""
        return all(plan.preserves_function for plan in self.plans)


def take_steps(
    model: nn.Module, methods: Sequence[Method], anatomy: Anatomy, inputs: Mapping[str, Tensor] | None = None
) -> Steps:
    """Plan and build with each method, one after another.

    Args:
        model: the network. It does not change.
        methods: the methods, in their order.
        anatomy: the anatomy of `model`.
        inputs: keyword arguments of forward, for plans that watch the network run. Random ones by default.
    """
    plans: list[GrowthPlan] = []
    for method in methods:
        plan = method.plan(anatomy, model, inputs)
        plans.append(plan)
        model, anatomy = build(plan, model), grown_anatomy(plan)
    return Steps(tuple(plans), model, anatomy)
