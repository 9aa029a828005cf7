"""The one place where tensors are walked: weights, gradients, first and second moments alike.

Everything is tensor by tensor and lazy, so that a model in memory, an optimizer and a checkpoint on disk are served by
the same lines.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from meristem.algebra import AxisMap
from meristem.growth.plan import GrowthPlan, TensorPlan

Fetch = Callable[[str], Tensor]
Moment = Literal["weight", "gradient", "second_moment"]


def grow_tensors(plan: GrowthPlan, fetch: Fetch, moment: Moment = "weight") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the large network, one at a time.

    Args:
        fetch: returns the small network's tensor of a given name (its weight, gradient or second moment).
        moment: what the tensors are, hence which maps they ride.
    """
    for name, tensor_plan in plan.tensors.items():
        yield name, grow_tensor(tensor_plan, fetch, moment)


def grow_tensor(plan: TensorPlan, fetch: Fetch, moment: Moment = "weight") -> Tensor:
    """One tensor of the large network, in the dtype of its source.

    weight:         scale . (maps applied) + null-space noise
    gradient:       (1 / scale) . (dual maps applied), which is the true gradient of the large network
    second_moment:  (1 / scale)^2 . (dual maps squared, applied); exact when each new unit has one source

    Half-precision tensors are computed in float32 and rounded once.
    """
    dtype = fetch(plan.terms[0].source).dtype
    exact = dtype if dtype in (torch.float32, torch.float64) or not dtype.is_floating_point else torch.float32
    total: Tensor | None = None
    for term in plan.terms:
        source = fetch(term.source)
        mapped = _map_dimensions(plan, source.to(exact), moment)
        mapped = source.clone() if mapped is source else mapped
        if not (isinstance(term.weight, float) and term.weight == 1):
            mapped = mapped * (term.weight**2 if moment == "second_moment" else term.weight)
        if term.part != "all":
            mapped = _part(plan, mapped, term.part)
        total = mapped if total is None else total + mapped
    assert total is not None
    if moment == "weight":
        return _finish_weight(plan, total).to(dtype).contiguous()
    unscale = 0.0 if plan.scale == 0 else 1 / plan.scale
    return (total * (unscale if moment == "gradient" else unscale**2)).to(dtype).contiguous()


def _map_dimensions(plan: TensorPlan, tensor: Tensor, moment: Moment) -> Tensor:
    for dimension in range(tensor.dim()):
        unit_map = plan.unit_map(dimension, dual=moment != "weight")
        if unit_map is not None:
            tensor = (unit_map.squared() if moment == "second_moment" else unit_map).apply(tensor, dimension)
    return tensor


def _part(plan: TensorPlan, tensor: Tensor, part: str) -> Tensor:
    """Only the units that are first copies of their source (originals), or only the others, along written dimensions."""
    further = torch.zeros((), dtype=torch.bool)
    for dimension, (axis_map, role) in enumerate(zip(plan.maps, plan.roles, strict=True)):
        if axis_map is not None and role != "read":
            shape = [1] * tensor.dim()
            shape[dimension] = -1
            further = further | axis_map.write.further_copies().view(shape)
    return torch.where(further.to(tensor.device) == (part == "copies"), tensor, 0)


def _finish_weight(plan: TensorPlan, tensor: Tensor) -> Tensor:
    if plan.scale != 1:
        tensor = (tensor + plan.offset) * plan.scale - plan.offset
    tensor = _write_fresh_units(plan, tensor)
    readers = [d for d, role in enumerate(plan.roles) if role == "read" and plan.maps[d] is not None]
    if not plan.noise or plan.scale == 0 or not readers:
        return tensor
    axis_map = plan.maps[readers[-1]]
    assert axis_map is not None
    return tensor + null_noise(plan, tensor, axis_map, readers[-1], plan.noise, plan.seed)


def null_noise(plan: TensorPlan, like: Tensor, axis_map: AxisMap, dimension: int, relative: float, seed: int) -> Tensor:
    """Noise of `relative` times the standard deviation of `like` that no unit of `axis_map` lets through `dimension`."""
    noise = _noise(plan.name, seed, like, "noise") * (relative * like.std())
    return axis_map.project_noise(noise, dimension)


def _write_fresh_units(plan: TensorPlan, tensor: Tensor) -> Tensor:
    """New units without a source that nobody reads yet: written at random, at the scale of their tensor."""
    for dimension, (axis_map, role) in enumerate(zip(plan.maps, plan.roles, strict=True)):
        if axis_map is not None and axis_map.fresh and role == "write" and tensor.dim() > 1 and plan.scale != 0:
            empty = axis_map.write.sourceless()
            scale = tensor.index_select(dimension, torch.nonzero(~empty).flatten().to(tensor.device)).std()
            shape = [1] * tensor.dim()
            shape[dimension] = -1
            tensor = torch.where(
                empty.to(tensor.device).view(shape), _noise(plan.name, plan.seed, tensor, "fresh") * scale, tensor
            )
    return tensor


def _noise(name: str, seed: int, like: Tensor, purpose: str) -> Tensor:
    """Standard normal numbers that depend on the seed, the tensor's name and the purpose only: streamed, sharded and
    in-memory growth draw the same."""
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(f"{purpose} {name}".encode()))
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
