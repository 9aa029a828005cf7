"""The weights of several networks side by side in one, and what they have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.streamed import Weights, weights_of
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.tensors.apply import grow_tensor, null_noise
from meristem.growth.tensors.build import filled, grown_dtypes, with_flags
from meristem.growth.tensors.rounding import is_half, round_shares


def side_by_side(plans: Sequence[GrowthPlan], models: Sequence[nn.Module], noise: float, seed: int) -> nn.Module:
    parents = [weights_of(model) for model in models]
    anatomy = plans[0].source
    copied = replace(plans[0], maps={axis: AxisMap.tile(anatomy.sizes[axis], len(models)) for axis in plans[0].maps})

    def fused(name: str) -> Tensor:
        plan = plans[0].tensors[name]
        source = anatomy.tensors[plan.terms[0].source]
        parts = [_part(p, name, weights) for p, weights in zip(plans, parents, strict=True)]
        if not parts[0].is_floating_point():
            return parts[0]
        dtype = parts[0].dtype
        total = torch.stack([part.float() if is_half(dtype) else part for part in parts]).sum(0)
        readers = [i for i, d in enumerate(source.dimensions) if d.role == "read" and plan.maps[i] is not None]
        if not noise or not readers:
            return total.to(dtype)
        layout = source.dimensions[readers[-1]].layout
        units = layout.expand({axis: copied.axis_map(axis) for axis in layout.axes()})
        total = total + null_noise(plan, total, units, readers[-1], noise, seed)
        return round_shares(total, dtype, units.heard, readers[-1]) if is_half(dtype) else total

    weights = Weights(grown_dtypes(plans[0], models[0]), lambda name: fused(plans[0].own_names[name]))
    return with_flags(filled(plans[0].target, weights, like=models[0]), plans, models)


def _part(plan: GrowthPlan, name: str, state: Mapping[str, Tensor]) -> Tensor:
    """The part of one parent in a fused tensor. It is zero at the units of others, also where a gain is
    stored as gain - 1.
    """
    tensor_plan = plan.tensors[name]
    if not any(tensor_plan.maps):  # shared by all: scaled as stored
        tensor = state[tensor_plan.terms[0].source]
        return tensor * tensor_plan.scale if tensor.is_floating_point() else tensor
    grown = grow_tensor(tensor_plan, state.__getitem__)
    if (tensor_plan.offset or "variance" in tensor_plan.roles) and tensor_plan.maps[0] is not None:
        grown = torch.where(tensor_plan.maps[0].write.sourceless().to(grown.device), 0, grown)
    return grown


def same_as(models: Sequence[nn.Module]) -> tuple[int, ...]:
    """For each network, the number of the first one that has the same weights."""
    states, weights = [model.state_dict() for model in models], [weights_of(model) for model in models]

    def alike(one: int, other: int) -> bool:
        return states[one].keys() == states[other].keys() and all(
            tensor.shape == states[one][name].shape and torch.equal(weights[one][name], weights[other][name])
            for name, tensor in states[other].items()
        )

    return tuple(next(i for i in range(n + 1) if models[i] is models[n] or alike(i, n)) for n in range(len(models)))


def norm_over_all(anatomy: Anatomy, grouped: bool) -> bool:
    """Whether a norm that measures its inputs runs over the units of all parents, or whether the parents
    share a tensor inside the blocks in which they differ (norms of single heads). A batch norm does not
    count, because its statistics are stored. Grouped norms over the residual stream do not count either.
    """
    return bool(anatomy.measured) or any(
        d.role == "gain"
        and f"{t.name.rpartition('.')[0]}.running_var" not in anatomy.tensors
        and not (grouped and str(d.layout) == "hidden")
        for t in anatomy.tensors.values()
        for d in t.dimensions
    )
