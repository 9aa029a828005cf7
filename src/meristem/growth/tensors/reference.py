"""The formula of a growth with whole matrices: the slow version of what `apply` computes fast.

    W' = scale . sum_k weight_k . (M_1 x ... x M_n) W_k

with the matrix M_d of every dimension d: write or read for weights, the dual one for gradients, and its
squares for second moments (`algebra.axis_map`). Noise and fresh units are left out, because they are random.
Tests compare both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from meristem.growth.plans.tensor_plan import TensorPlan


def reference_weight(plan: TensorPlan, fetch: Callable[[str], Tensor]) -> Tensor:
    """The weight of `plan` without noise, in float64."""
    total = sum(term.weight * _mapped(plan, fetch(term.source), dual=False, power=1) for term in plan.terms)
    assert isinstance(total, Tensor)
    return (total + plan.offset) * plan.scale - plan.offset


def reference_moment(plan: TensorPlan, fetch: Callable[[str], Tensor], power: int) -> Tensor:
    """The gradient (power 1) or second moment (power 2) of the large network, in float64."""
    total = sum(term.weight**power * _mapped(plan, fetch(term.source), dual=True, power=power) for term in plan.terms)
    assert isinstance(total, Tensor)
    return torch.zeros_like(total) if plan.begins else total / plan.scale**power


def _mapped(plan: TensorPlan, tensor: Tensor, dual: bool, power: int) -> Tensor:
    tensor = tensor.double()
    for dimension in range(len(plan.maps)):
        unit_map = plan.unit_map(dimension, dual)
        if unit_map is not None:
            tensor = (tensor.movedim(dimension, -1) @ (unit_map.matrix() ** power).T).movedim(-1, dimension)
    return tensor
