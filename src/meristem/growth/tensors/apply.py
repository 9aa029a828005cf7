"""The only code that computes the tensors of a growth: weights, gradients, first and second moments.

It works lazily, one tensor at a time. A model in memory, an optimizer and a checkpoint on disk all use the
same code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from meristem.algebra import AxisMap, UnitMap
from meristem.growth.plans.origins import Redrawn, Shards
from meristem.growth.plans.tensor_plan import Drawn, TensorPlan
from meristem.growth.tensors.draws import normal
from meristem.growth.tensors.noisy_rows import (
    Maps,
    all_rows,
    noisy_reader,
    noisy_rows,
    rounded,
    rows_apart,
    shared_reader,
)
from meristem.growth.tensors.rounding import is_half, rounds_exactly

Fetch = Callable[[str], Tensor]
Moment = Literal["weight", "gradient", "second_moment", "magnitude", "direction", "displacement"]

# How each kind of tensor changes the dual maps, and with which power of 1 / scale it goes. Weights, and differences of weights
# ("displacement"), ride the maps themselves.
DUAL: dict[str, tuple[Callable[[UnitMap], UnitMap], int]] = {
    "gradient": (lambda unit_map: unit_map, 1),
    "second_moment": (UnitMap.squared, 2),
    "magnitude": (UnitMap.absolute, 1),
    "direction": (UnitMap.signs, 0),
}


def grow_tensor(plan: TensorPlan, fetch: Fetch, moment: Moment = "weight") -> Tensor:
    """One tensor of the large network, in the dtype of its source.

    - weight: scale . (maps applied) + null-space noise
    - gradient: (1 / (scale copies)) . (dual maps applied), which is the true gradient of the large network
    - second_moment: (1 / (scale copies))^2 . (dual maps squared, applied); exact if each new unit has one
      source
    - magnitude: |1 / (scale copies)| . (dual maps without signs, applied): averages of |gradient|
    - direction: (signs of the dual maps, applied): averages of steps that do not depend on the size of
      gradients
    - displacement: scale . (maps applied), nothing else: differences of weights

    Tensors in half precision are computed in float32 and rounded once. Weights are rounded so that the shares
    of a unit's copies still sum to the old column (see `rounding`). If new units are only scaled copies of
    old ones, the old ones are scaled and rounded, and then copied. The numbers are the same, for a fraction
    of the work.
    """
    if plan.beside:
        return torch.cat([grow_tensor(part, fetch, moment) for part in plan.parts], plan.along)
    if plan.drawn is not None:
        return _drawn(plan, plan.drawn, fetch(plan.terms[0].source), moment)
    fetch = _in_shards(fetch, plan.shards) if plan.shards else fetch
    maps = [plan.unit_map(dimension, dual=moment in DUAL) for dimension in range(len(plan.maps))]
    if moment in DUAL:
        maps = [unit_map and DUAL[moment][0](unit_map) for unit_map in maps]
    first = fetch(plan.terms[0].source)

    def fetch_once(name: str) -> Tensor:
        return first if name == plan.terms[0].source else fetch(name)

    if makes_scaled_copies(plan, maps, moment, first.dtype):
        return scaled_copies(plan, fetch_once, moment, maps)
    if moment == "weight" and rows_apart(plan, maps):
        return noisy_rows(plan, first, maps, all_rows(plan, first, maps))
    return computed(plan, fetch_once, moment, maps, UnitMap.apply).contiguous()


def makes_scaled_copies(plan: TensorPlan, maps: Maps, moment: Moment, dtype: torch.dtype) -> bool:
    """Whether every new unit is an old one times a factor that all its copies share, also after rounding."""
    if moment == "weight" and is_half(dtype) and shared_reader(plan) is not None and not _rounds_exactly(plan, maps):
        return False
    return all(m is None or m.source_factor is not None for m in maps) and not _mixes_units(plan, moment)


def _rounds_exactly(plan: TensorPlan, maps: Maps) -> bool:
    return all(m is None or rounds_exactly(m) for m, role in zip(maps, plan.roles, strict=True) if role == "read")


def scaled_copies(plan: TensorPlan, fetch: Fetch, moment: Moment, maps: Maps) -> Tensor:
    if not changes_numbers(plan, maps) and not (moment in DUAL and (plan.begins or plan.copies > 1)):
        return _copied(fetch(plan.terms[0].source), maps)
    return _copied(computed(plan, fetch, moment, maps, UnitMap.scale_sources), maps)


def changes_numbers(plan: TensorPlan, maps: Maps) -> bool:
    """Whether anything is computed. Otherwise every number of the new tensor is a number of the old one."""
    term = plan.terms[0]
    alone = len(plan.terms) == 1 and isinstance(term.weight, float) and term.weight == 1 and term.part == "all"
    return (
        not alone
        or plan.scale != 1
        or noisy_reader(plan) is not None
        or not all(m is None or m.copies_only for m in maps)
    )


def _mixes_units(plan: TensorPlan, moment: Moment) -> bool:
    """Whether copies of one unit differ, by noise, random new units, or other sources for further copies."""
    if plan.redrawn is not None:
        return True
    written = moment == "weight" and (
        noisy_reader(plan) is not None
        or plan.perturb > 0
        or any(m is not None and (m.fresh is not None or m.filled) for m in plan.maps)
    )
    return written or any(term.part != "all" for term in plan.terms)


def computed(
    plan: TensorPlan,
    fetch: Fetch,
    moment: Moment,
    maps: Maps,
    along: Callable[[UnitMap, Tensor, int], Tensor],
) -> Tensor:
    """The sum of the terms, scaled. `along` applies the map of each dimension."""
    total: Tensor | None = None
    dtype = torch.float32
    for number, term in enumerate(plan.terms):
        source = fetch(term.source)
        dtype = source.dtype if number == 0 else dtype
        whole = dtype in (torch.float32, torch.float64) or not dtype.is_floating_point
        mapped = source if whole else source.float()
        for dimension, unit_map in enumerate(maps):
            mapped = mapped if unit_map is None else along(unit_map, mapped, dimension)
        if not (isinstance(term.weight, float) and term.weight == 1):
            mapped = mapped * (term.weight**2 if moment == "second_moment" else term.weight)
        if term.part != "all":
            mapped = _part(plan, mapped, term.part)
        total = mapped if total is None else total + mapped
    assert total is not None
    if moment == "weight":
        return rounded(plan, _finish_weight(plan, total), dtype)
    if moment == "displacement":
        return (total * plan.scale).to(dtype)
    if plan.begins:
        return torch.zeros_like(total, dtype=dtype)
    if plan.redrawn is not None:  # redrawn entries have no past
        total = total.masked_fill(plan.redrawn.mask(total.shape).to(total.device), 0)
    factor = (1 / (plan.scale * plan.copies)) ** DUAL[moment][1]
    return (total * (abs(factor) if moment == "magnitude" else factor)).to(dtype)


def _copied(tensor: Tensor, maps: Maps) -> Tensor:
    """A new tensor with every unit copied to its new places. Rows come last, because they are copied
    whole.
    """
    grown = tensor
    for dimension, unit_map in reversed(list(enumerate(maps))):
        grown = grown if unit_map is None else unit_map.gather(grown, dimension)
    return grown.clone() if grown is tensor else grown.contiguous()


def _part(plan: TensorPlan, tensor: Tensor, part: str) -> Tensor:
    """Only the units that are first copies of their source (originals), or only the others, along written
    dimensions.
    """
    further = torch.zeros((), dtype=torch.bool)
    for dimension, (axis_map, role) in enumerate(zip(plan.maps, plan.roles, strict=True)):
        if axis_map is not None and role != "read":
            shape = [1] * tensor.dim()
            shape[dimension] = -1
            further = further | axis_map.write.further_copies().view(shape)
    return torch.where(further.to(tensor.device) == (part == "copies"), tensor, 0)


def _in_shards(fetch: Fetch, shards: Shards) -> Fetch:
    return lambda name: shards(fetch(name))


def _drawn(plan: TensorPlan, drawn: Drawn, like: Tensor, moment: Moment) -> Tensor:
    """A tensor without sources, or its moments, which begin at zero."""
    if moment == "weight" and drawn.values is not None:
        return drawn.values.to(like.device, like.dtype, copy=True)
    if moment != "weight" or not drawn.std:
        return torch.zeros(drawn.shape, dtype=like.dtype, device=like.device)
    rows = torch.empty(drawn.shape[0] // drawn.repeats, *drawn.shape[1:])
    values = _noise(plan.name, plan.seed, rows, "drawn") * drawn.std
    return values.repeat_interleave(drawn.repeats, 0).to(like.device, like.dtype)


def _redrawn(plan: TensorPlan, redrawn: Redrawn, tensor: Tensor) -> Tensor:
    """Some units drawn again, with the mean and the standard deviation of the tensor (drop-upcycling)."""
    values = _noise(plan.name, plan.seed, tensor, f"redrawn {plan.terms[0].source}") * tensor.std() + tensor.mean()
    return torch.where(redrawn.mask(tensor.shape).to(tensor.device), values, tensor)


def _finish_weight(plan: TensorPlan, tensor: Tensor) -> Tensor:
    if plan.redrawn is not None:
        tensor = _redrawn(plan, plan.redrawn, tensor)
    if plan.scale != 1:
        tensor = (tensor + plan.offset) * plan.scale - plan.offset
    tensor = _write_fresh_units(plan, _with_unit_variances(plan, _fill_units(plan, tensor)))
    if plan.perturb:
        tensor = tensor + _noise(plan.name, plan.seed, tensor, "perturb") * plan.perturb
    reader = noisy_reader(plan)
    if reader is None:
        return tensor
    axis_map = plan.maps[reader]
    assert axis_map is not None
    return tensor + null_noise(plan, tensor, axis_map, reader, plan.noise, plan.seed)


def null_noise(plan: TensorPlan, like: Tensor, axis_map: AxisMap, dimension: int, relative: float, seed: int) -> Tensor:
    """Noise of `relative` times the standard deviation of `like` that the units of `axis_map` cancel along
    `dimension`.
    """
    noise = _noise(plan.name, seed, like, "noise") * (relative * like.std())
    return axis_map.project_noise(noise, dimension)


def _fill_units(plan: TensorPlan, tensor: Tensor) -> Tensor:
    """New units without a source that take the mean of the others."""
    for dimension, axis_map in enumerate(plan.maps):
        if axis_map is not None and axis_map.filled and plan.roles[dimension] != "read":
            empty = axis_map.write.sourceless().to(tensor.device)
            mean = tensor.index_select(dimension, torch.nonzero(~empty).flatten()).mean(dimension, keepdim=True)
            shape = [1] * tensor.dim()
            shape[dimension] = -1
            tensor = torch.where(empty.view(shape), mean, tensor)
    return tensor


def _with_unit_variances(plan: TensorPlan, tensor: Tensor) -> Tensor:
    """The stored variance of new units without a source, for which a batch norm has no statistics: 1, as at
    its start.
    """
    for axis_map, role in zip(plan.maps, plan.roles, strict=True):
        if role == "variance" and axis_map is not None and tensor.shape == (axis_map.new_size,):
            tensor = torch.where(axis_map.heard.sourceless().to(tensor.device), torch.ones_like(tensor), tensor)
    return tensor


def _write_fresh_units(plan: TensorPlan, tensor: Tensor) -> Tensor:
    """New units without a source that nothing reads yet: random numbers at the scale of their tensor."""
    for dimension, (axis_map, role) in enumerate(zip(plan.maps, plan.roles, strict=True)):
        if axis_map is None or axis_map.fresh is None or role != "write" or tensor.dim() == 1 or plan.scale == 0:
            continue
        empty = axis_map.write.sourceless()
        scale = tensor.index_select(dimension, torch.nonzero(~empty).flatten().to(tensor.device)).std()
        shape = [1] * tensor.dim()
        shape[dimension] = -1
        fresh = (empty & axis_map.fresh).to(tensor.device).view(shape)
        tensor = torch.where(fresh, _noise(plan.name, plan.seed, tensor, "fresh") * scale, tensor)
    return tensor


def _noise(name: str, seed: int, like: Tensor, purpose: str) -> Tensor:
    """Standard normal numbers that depend only on the seed, the tensor's name, the purpose and the place.
    Streamed, sharded and in-memory growth draw the same numbers on every device.
    """
    return normal(name, seed, purpose, like.shape).to(like.device, like.dtype)
