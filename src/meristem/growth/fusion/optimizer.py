"""The optimizer of a fused network, from those of its parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meristem.errors import MeristemError
from meristem.growth.fusion.experts import state_of_mixture
from meristem.growth.fusion.fusion import Fusion
from meristem.growth.optimizers.block_steps import MISSED
from meristem.growth.optimizers.optimizer import (
    State,
    grow_state,
    load_named_state,
    named_state,
    own_steps,
    unwrapped,
    without_state,
)
from meristem.growth.optimizers.optimizer_families import Entry, Family, family_by_entries, family_of
from meristem.growth.plans.upcycle_plan import UpcyclePlan


def fuse_optimizer(fusion: Fusion, optimizers: Sequence[Optimizer], parents: Sequence[nn.Module]) -> Optimizer:
    """Make an optimizer for a fused network from those of its parents.

        fusion = ms.fuse_with_certificate([a, b])
        optimizer = ms.fuse_optimizer(fusion, [optimizer_a, optimizer_b], [a, b])

    The states are combined by `fuse_state`, and the hyperparameters are those of the first optimizer. If a
    run resumes from its saved state, call `ms.count_blocks_apart(optimizer)` after `load_state_dict`. Recipes
    do so themselves.

    Args:
        fusion: the result of `ms.fuse_with_certificate`.
        optimizers: the optimizers that trained `parents`. They are of one kind, and their state consists of
            moments (Adam, AdamW, SGD with momentum).
        parents: the networks that were fused, in the order of `ms.fuse_with_certificate`.

    Raises:
        MeristemError: if an optimizer is not that of its parent, if its state cannot be fused, or if
            `Rebasin` made the fusion.
    """
    optimizers = [unwrapped(optimizer) for optimizer in optimizers]
    states = [named_state(optimizer, parent) for optimizer, parent in zip(optimizers, parents, strict=True)]
    fused = without_state(optimizers[0], parents[0], fusion.model, fusion.plans[:1], scale_learning_rate=False)
    load_named_state(fused, fusion.model, fuse_state(fusion, states, family_of(optimizers[0])))
    return fused


POWERS: Mapping[Entry, int] = {  # of the gradient, in each kind of entry
    "gradient": 1,
    "second_moment": 2,
    "magnitude": 1,
    "row": 2,
    "column": 2,
    "direction": 0,
    "displacement": 0,
    "weights": 0,
}


def fuse_state(fusion: Fusion, states: Sequence[State], family: Family | None = None) -> dict[str, dict[str, Tensor]]:
    """Combine the optimizer states of the parents into one.

    Moments follow the dual maps, with the weights that the parents have in the mean. They are zero in cross
    blocks. The step count is the largest of the parents' counts. Other blocks have missed some of these steps
    (see `block_steps`). The gradient of the mean's loss at a parent's own block is the parent's gradient
    times its weight, as far as the outputs of the parents agree. For parents that became experts, see
    `fusion.experts.state_of_mixture`.

    Args:
        fusion: the result of `ms.fuse_with_certificate`.
        states: one state for each parent, by the name of the parameter.
        family: the row of the table `optimizer_families`. By default the first row that has all entries of
            the state.

    Raises:
        MeristemError: if `Rebasin` made the fusion, because units are then permuted.
    """
    if not fusion.plans:
        raise MeristemError(
            "the optimizers of aligned networks cannot be carried over, because units were permuted; start a new one"
        )
    family = family or family_by_entries({key for s in states for entries in s.values() for key in entries} - {MISSED})
    if fusion.as_experts:
        return state_of_mixture([p for p in fusion.plans if isinstance(p, UpcyclePlan)], fusion.weights, states, family)
    total: dict[str, dict[str, Tensor]] = {}
    counts: dict[str, list[Tensor]] = {}
    for plan, weight, state in zip(fusion.plans, fusion.weights, states, strict=True):
        for name, entries in grow_state(plan, state, family).items():
            fused = total.setdefault(name, {})
            for key in entries:
                if key == "step":
                    counts.setdefault(name, []).append(own_steps(plan, name, state))
                elif family.entries.get(key) == "scalar":
                    fused.setdefault(key, entries[key])
                elif key != MISSED:
                    value, power = entries[key], POWERS[family.entries[key]]
                    shared = not any(plan.tensors[name].maps)  # all parents' gradients are this tensor's: their mean
                    share = weight ** (power + 1 if shared else power)
                    fused[key] = fused[key] + share * value if key in fused else share * value
    for name, own in counts.items():
        shared = not any(fusion.plans[0].tensors[name].maps)
        steps = torch.stack(own).amin(0) if shared else torch.stack(own).sum(0)  # each entry is one parent's, or none's
        total[name]["step"] = steps.max()
        if (steps < steps.max()).any():
            total[name][MISSED] = steps.max() - steps
    return total
