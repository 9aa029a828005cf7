"""Which blocks stay when a network loses some: those without which the loss would be higher."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from meristem.anatomy.inputs import outputs_of
from meristem.anatomy.modes import evaluating
from meristem.certificates import relative_error
from meristem.errors import MeristemError
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.tensors.build import build

Kept = dict[str, list[int]]  # {list of blocks: those that stay}


def blocks_that_stay(
    plan: Callable[[Kept], GrowthPlan],
    model: nn.Module,
    lengths: Mapping[str, int],
    targets: Mapping[str, int],
    batches: Sequence[Mapping[str, Any]],
) -> Kept:
    """The blocks that stay, in order. Blocks are removed one at a time, each time the one without which the
    network does best on the data.

    Args:
        plan: a function that makes the plan of a network with only these blocks.
        model: the network.
        lengths: how many blocks each list has.
        targets: how many blocks each list should have.
        batches: batches of keyword arguments of forward. With labels, the loss is compared; otherwise the
            change of the outputs.

    Raises:
        MeristemError: if fewer blocks can be left out than requested, because the others change the shape of
            what passes through them.
    """
    with evaluating(model):
        whole = [outputs_of(model, batch) for batch in batches]

    def cost(kept: Kept) -> float:
        try:
            small = build(plan(kept), model).eval()
            outputs = [outputs_of(small, batch) for batch in batches]
        except (MeristemError, RuntimeError):  # shapes that do not fit
            return math.inf
        pairs = zip(whole, outputs, strict=True)
        costs = [
            float(own["loss"]) if "loss" in own else max(relative_error(full[n], own[n]) for n in full if n in own)
            for full, own in pairs
        ]
        return sum(costs) / len(costs) if all(map(math.isfinite, costs)) else math.inf

    stay: Kept = {axis: list(range(lengths[axis])) for axis in targets}
    for axis, target in targets.items():
        while len(stay[axis]) > target:
            without = {b: {**stay, axis: [other for other in stay[axis] if other != b]} for b in stay[axis]}
            costs = {block: cost(kept) for block, kept in without.items()}
            best = min(costs, key=lambda block: costs[block])
            if not math.isfinite(costs[best]):
                raise MeristemError(
                    f"prune: {len(stay[axis])} of {axis} cannot become {target}: each of those left changes the shape of what "
                    f"passes through it; {len(stay[axis])} would work"
                )
            stay = without[best]
    return stay
