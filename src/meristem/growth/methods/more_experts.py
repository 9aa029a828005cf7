"""More experts in a mixture: copies of the present experts and of their rows of the router."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy, Builder
from meristem.anatomy.trace import Inputs
from meristem.anatomy.unit_lists import units_of
from meristem.errors import MeristemError
from meristem.growth.methods.method import Method, Weights
from meristem.growth.plans.mixtures import MIXTURES
from meristem.growth.plans.plan import GrowthPlan, Perturbation

PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k")
BIAS = "e_score_correction_bias"  # added to scores where experts are chosen, not where they are weighed (DeepSeek-V3, arXiv:2412.19437)
SHARING = (
    "ernie4_5_moe",
    "ernie4_5_vl_moe",
    "ernie4_5_vl_moe_text",
)  # classes with such a bias whose scores share out 1; others' are sigmoids


@dataclass(frozen=True)
class MoreExperts(Method):
    """Add copies of experts, with equal rows of the router. The copies follow the old experts.

    "Expert growth", arXiv:2604.19835. The function is kept if `experts_per_token` grows by the same whole
    factor as `num_experts` and every expert gets the same number of copies: all copies of a chosen expert are
    then chosen and share its weight. This holds whether or not the class normalises the weights. Routers that
    choose groups of experts first (`n_group` above 1) do not keep it. If top-k stays as it is, copies of the
    best expert displace others. Such a change is measured, not promised. Noise on the router's rows lets
    copies diverge. In classes that always give a token one expert (Switch), the first copy is chosen, and its
    output is multiplied by the number of copies. That is exact for whole multiples.

    Args:
        num_experts: the target number of experts.
        experts_per_token: the target's top-k. By default it does not change.
        weights: how often each present expert is used (counts or shares). Experts get copies in proportion.
            By default all get the same number.
        noise: the standard deviation of the noise on every row of the router.
        seed: the seed of the noise.

    Raises:
        MeristemError: when a network is grown, if it has no experts, if `num_experts` is not larger than
            their number, if `experts_per_token` is impossible, or if `weights` are not one number of at least
            zero for each expert.
    """

    name: ClassVar[str] = "more_experts"
    preserving: ClassVar[bool] = False
    num_experts: int | None = None
    experts_per_token: int | None = None
    weights: Sequence[float] | str | None = None
    noise: float = 0.0
    seed: int = 0

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """Raises MeristemError if the network has no experts, if `num_experts` does not grow, or if `weights`
        do not fit.
        """
        axis, old = self._axis(anatomy)
        return {axis: AxisMap.duplicate(self._sources(old), old)}

    def _axis(self, anatomy: Anatomy) -> tuple[str, int]:
        found = anatomy.of_kind("experts")
        if not found:
            raise MeristemError(f"{self.name}: {anatomy.builder.model_type} has no experts; upcycle adds some")
        old, target = found[0].size, self.num_experts
        if isinstance(target, bool) or not isinstance(target, int) or target <= old:
            raise MeristemError(f"{self.name}: num_experts must be more than {old}, the present number, got {target!r}")
        top = self.experts_per_token
        if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= target):
            raise MeristemError(f"{self.name}: experts_per_token must be from 1 to {target}, got {top!r}")
        return found[0].name, old

    def _sources(self, old: int) -> torch.Tensor:
        """The old expert that each new one copies: all old ones first, then copies."""
        assert self.num_experts is not None
        further = self.num_experts - old
        used = self._used(old)
        if used is None:
            return torch.cat([torch.arange(old), torch.arange(further) % old])
        due = [share * self.num_experts for share in used]  # copies in proportion, one at least
        copies = [1] * old
        for _ in range(further):
            copies[max(range(old), key=lambda expert: due[expert] / copies[expert])] += 1
        more = [torch.full((count - 1,), expert) for expert, count in enumerate(copies)]
        return torch.cat([torch.arange(old), *more])

    def _used(self, old: int) -> list[float] | None:
        """The share of tokens that use each old expert."""
        if self.weights is None:
            return None
        given = self.weights.split(",") if isinstance(self.weights, str) else list(self.weights)
        try:
            used = [float(weight) for weight in given]
        except ValueError as error:
            raise MeristemError(f"{self.name}: weights are numbers, got {self.weights!r}") from error
        right = len(used) == old and all(math.isfinite(weight) and weight >= 0 for weight in used) and sum(used) > 0
        if not right:
            raise MeristemError(
                f"{self.name}: weights must be {old} numbers of at least zero (how often each expert is used), got {self.weights!r}"
            )
        return [weight / sum(used) for weight in used]

    def target(self, anatomy: Anatomy, weights: Weights) -> Builder:
        """As in `Method`, with the target's top-k."""
        found = super().target(anatomy, weights)
        return found.resized(found.sizes, found.depths, self.top_k(anatomy))

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """Whether all copies of a chosen expert are chosen too, equally often for all experts, or one copy
        with the weight of all.
        """
        (axis,) = maps
        (_, top), factor = self._per_token(anatomy), maps[axis].new_size / maps[axis].old_size
        grown = _one_per_token(anatomy) or (
            self.experts_per_token is not None and self.experts_per_token == top * factor
        )
        return maps[axis].is_uniform() and not self.noise and grown and not grouped(anatomy)

    def _per_token(self, anatomy: Anatomy) -> tuple[str, int]:
        for name in PER_TOKEN:
            if isinstance(value := anatomy.builder.fact(name), int):
                return name, value
        return "", 1

    def top_k(self, anatomy: Anatomy) -> dict[str, int]:
        """The entry of the target's config for the number of experts per token. Empty if that number
        stays.
        """
        if self.experts_per_token is None:
            return {}
        name, _ = self._per_token(anatomy)
        if not name:
            raise MeristemError(f"{self.name}: {anatomy.builder.model_type} has no field for experts_per_token")
        return {name: self.experts_per_token}

    def plan(self, anatomy: Anatomy, model: nn.Module, inputs: Inputs = None) -> GrowthPlan:
        """As in `Method`, with noise on the router's rows."""
        plan = super().plan(anatomy, model, inputs)
        plan = replace(plan, target=plan.target.resized(plan.target.sizes, plan.target.depths, self.top_k(anatomy)))
        (axis,) = plan.maps
        if _one_per_token(anatomy):  # one copy is chosen, with its share of what the router gave the old expert
            louder = dict.fromkeys(self._writers(anatomy, axis), plan.maps[axis].new_size / plan.maps[axis].old_size)
            plan = replace(plan, scales={**plan.scales, **louder})
        elif self.experts_per_token is not None and _adds_up(anatomy):
            softer = self._per_token(anatomy)[1] / self.experts_per_token
            plan = replace(plan, scales={**plan.scales, **dict.fromkeys(self._writers(anatomy, axis), softer)})
        if anatomy.builder.model_type in SHARING:  # with m times as many experts, scores are an m-th
            share = plan.maps[axis].old_size / plan.maps[axis].new_size
            biases = (tensor.name for name, tensor in anatomy.tensors.items() if BIAS in name)
            plan = replace(plan, scales={**plan.scales, **dict.fromkeys(biases, share)})
        if not self.noise:
            return plan
        routers = frozenset(
            tensor.name
            for tensor in anatomy.tensors.values()
            if len(tensor.shape) == 2 and str(tensor.dimensions[0].layout) == axis
        )
        return replace(plan, perturbation=Perturbation(1.0, self.noise, only=routers), seed=self.seed)

    def _writers(self, anatomy: Anatomy, axis: str) -> list[str]:
        """The output weights of the experts, in one tensor or in a tensor for each expert."""
        own = [
            tensor
            for name, tensor in anatomy.tensors.items()
            if any(found == axis for found, *_ in units_of(name, anatomy.unit_lists))
            or (len(tensor.shape) > 2 and str(tensor.dimensions[0].layout) == axis)
        ]
        return [tensor.name for tensor in own if tensor.writes(anatomy.stream(tensor))]


def _one_per_token(anatomy: Anatomy) -> bool:
    """Whether this class gives a token one expert, whatever its config says."""
    return anatomy.builder.model_type in {row.model_type for row in MIXTURES.values() if not row.per_token}


def _adds_up(anatomy: Anatomy) -> bool:
    """Whether the weight of each chosen expert does not depend on the others, so that those of m copies add
    up to m times as much.
    """
    sigmoids = any(BIAS in name for name in anatomy.tensors) and anatomy.builder.model_type not in SHARING
    return sigmoids and anatomy.builder.fact("norm_topk_prob") is False


def grouped(anatomy: Anatomy) -> str:
    """Why a router that chooses groups of experts first cannot keep the function. "" for other routers."""
    groups = anatomy.builder.fact("n_group")
    if isinstance(groups, int) and groups > 1:
        return f"the router chooses groups of experts first (n_group={groups}), by their best experts, and copies displace these"
    return ""
