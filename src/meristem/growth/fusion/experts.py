"""Parents fused as experts (branch-train-mix): their feed-forward blocks become the experts of one mixture,
and everything else is averaged.

Sukhbaatar et al.: "Branch-Train-MiX: Mixing Expert LLMs into a Mixture-of-Experts LLM", 2024,
arXiv:2403.07816.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.anatomy.streamed import Weights, weights_of
from meristem.errors import MeristemError
from meristem.growth.methods.deep_fusion import DeepFusion
from meristem.growth.methods.upcycle import Upcycle
from meristem.growth.optimizers.block_steps import MISSED
from meristem.growth.optimizers.optimizer import State, grow_state, own_steps
from meristem.growth.optimizers.optimizer_families import Family
from meristem.growth.plans.upcycle_plan import EXPERT, UpcyclePlan
from meristem.growth.structure.differences import check_alike
from meristem.growth.tensors.apply import grow_tensor
from meristem.growth.tensors.build import filled, grown_dtypes, with_flags


def expert_plans(
    method: DeepFusion, anatomies: Sequence[Anatomy], models: Sequence[nn.Module], alike: bool
) -> list[UpcyclePlan]:
    """The upcycling of each parent alone, to one mixture with an expert for each of them.

    If the parents are one network (`alike`), the router may be zero. Others get a random router, because a
    router of zeros would send every token to the same parent.

    Raises:
        MeristemError: if the parents differ in architecture or size, if their family has no mixture class, or
            if there are fewer experts than a token should get.
    """
    first = anatomies[0]
    for number, other in enumerate(anatomies[1:], start=2):
        if not method.allow_differences:
            check_alike(first, other, number)
        different = [
            name
            for name in {**first.tensors, **other.tensors}
            if name not in first.tensors
            or name not in other.tensors
            or first.tensors[name].shape != other.tensors[name].shape
        ]
        if different:
            raise MeristemError(
                f"parents that become experts have one size; {different[0]} of parent {number} differs from that of the first"
            )
    top = method.experts_per_token
    if top > len(models):
        raise MeristemError(
            f"{len(models)} parents make {len(models)} experts, of which a token cannot get experts_per_token={top}; at most "
            f"{len(models)} would work"
        )
    router = None if alike else "random"
    tied = {frozenset(name for name, tensor in a.tensors.items() if tensor.tied_to) for a in anatomies}
    fields = (
        {"tie_word_embeddings": False} if len(tied) > 1 else None
    )  # the mean of a tied head and another one is a head
    upcycle = Upcycle(num_experts=len(models), experts_per_token=top, router=router, fields=fields, seed=method.seed)
    return [upcycle.plan(anatomy, model) for anatomy, model in zip(anatomies, models, strict=True)]


def mixture_of_parents(plans: Sequence[UpcyclePlan], models: Sequence[nn.Module], shares: Sequence[float]) -> nn.Module:
    """The mixture: expert p is that of parent p, the router is new, and every other tensor is the weighted
    mean of the parents. It is streamed if they are.
    """
    parents = [weights_of(model) for model in models]

    def made(name: str, parent: int) -> Tensor:
        return grow_tensor(plans[parent].tensors[name], parents[parent].__getitem__)

    def fused(name: str) -> Tensor:
        return _joined(plans[0], name, lambda parent: made(name, parent), shares)

    own = plans[0].own_names
    weights = Weights(grown_dtypes(plans[0], models[0]), lambda n: fused(own[n]))
    return with_flags(filled(plans[0].target, weights, like=models[0]), plans, models)


def state_of_mixture(
    plans: Sequence[UpcyclePlan], shares: Sequence[float], states: Sequence[State], family: Family
) -> dict[str, dict[str, Tensor]]:
    """The optimizer states of the parents as that of the mixture.

    An expert has its own moments, for its share of the tokens. Other tensors have the weighted mean of the
    parents, and the router has none. The steps of each expert are those of its parent, and those of a mean
    are the fewest of the parents. For parents that are one network this is, on average over tokens, the state
    that the mixture's own gradients would have left. For others it is that state as far as the parents'
    gradients agree.
    """
    grown = [grow_state(plan, state, family) for plan, state in zip(plans, states, strict=True)]
    total: dict[str, dict[str, Tensor]] = {}
    for name in (name for name in grown[0] if all(name in own for own in grown)):
        fused = total.setdefault(name, {})
        for key in (key for key in grown[0][name] if key != MISSED):
            if key == "step":
                continue
            if family.entries[key] == "scalar":
                fused[key] = grown[0][name][key]
            else:
                fused[key] = _joined(plans[0], name, lambda p, n=name, k=key: grown[p][n][k], shares)
        if "step" in grown[0][name]:
            steps = _steps_of(plans, name, states)
            fused["step"] = steps.max().to(grown[0][name]["step"])
            if family.counts and (steps < steps.max()).any():
                fused[MISSED] = steps.max() - steps
    return total


def _joined(plan: UpcyclePlan, name: str, made: Callable[[int], Tensor], shares: Sequence[float]) -> Tensor:
    """One tensor of the mixture, or an entry of its optimizer state, from what the upcycling of each parent
    makes.
    """
    tensor_plan, match = plan.tensors[name], EXPERT.match(name)
    if tensor_plan.drawn is not None:
        return made(0)
    if match is not None and match.group(2) is not None:
        return made(int(match.group(2)))
    parts = [made(parent) for parent in range(len(shares))]
    if tensor_plan.shards is not None:
        return torch.stack([part[parent] for parent, part in enumerate(parts)])
    if not parts[0].is_floating_point():
        return parts[0]
    wide = torch.float64 if parts[0].dtype == torch.float64 else torch.float32
    mean = torch.stack([share * part.to(wide) for share, part in zip(shares, parts, strict=True)]).sum(0)
    return mean.to(parts[0].dtype)


def _steps_of(plans: Sequence[UpcyclePlan], name: str, states: Sequence[State]) -> Tensor:
    """How many steps each entry of the mixture's tensor has trained."""
    own = [own_steps(plan, name, state) for plan, state in zip(plans, states, strict=True)]
    match = EXPERT.match(name)
    if match is not None and match.group(2) is not None:
        return own[int(match.group(2))]
    if plans[0].tensors[name].shards is not None:
        return torch.stack([steps[parent] for parent, steps in enumerate(own)])
    return torch.stack(own).amin(0)
