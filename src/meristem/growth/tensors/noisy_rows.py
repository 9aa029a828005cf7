"""Rows of a weight whose copies differ by noise. Each is computed from one old row, so any of them can be
computed separately.

The copies of a unit divide what reads it: W / n each, plus deviations that sum to zero. If all units have the
same number of copies in regular places (HyperCloning), shares are computed from the old columns and the
deviations at once. Two copies deviate by the same number with opposite signs, which is drawn once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from meristem.algebra import AxisMap, UnitMap
from meristem.growth.plans.tensor_plan import TensorPlan
from meristem.growth.tensors.draws import BLOCK, normal
from meristem.growth.tensors.rounding import is_half, pair_of, round_shares, shares_of

Maps = list[UnitMap | None]  # for each dimension; None: unchanged


@dataclass(frozen=True)
class Rows:
    """Some rows of a new tensor: (first, last), the number of all rows, and the standard deviation of all
    entries before noise.
    """

    here: tuple[int, int]
    of: int
    spread: float


def shared_reader(plan: TensorPlan) -> int | None:
    """The last dimension along which copies of a unit divide what reads it."""
    readers = [d for d, role in enumerate(plan.roles) if role == "read" and plan.maps[d] is not None]
    return readers[-1] if readers else None


def noisy_reader(plan: TensorPlan) -> int | None:
    """The dimension along which noise cancels, if this tensor gets any."""
    return shared_reader(plan) if plan.noise and plan.scale != 0 else None


def rows_apart(plan: TensorPlan, maps: Maps) -> bool:
    """Whether there is noise and every new row is computed from one old row, noise included."""
    plain = len(plan.terms) == 1 and isinstance(plan.terms[0].weight, float | int) and plan.terms[0].part == "all"
    more = plan.perturb or plan.offset or plan.beside or plan.drawn or plan.shards or plan.redrawn
    if not plain or more or len(maps) < 2 or noisy_reader(plan) in (None, 0):
        return False
    drawn = any(m is not None and (m.fresh is not None or m.filled) for m in plan.maps)
    return not drawn and all(m is None or m.dense is None for m in maps)


def all_rows(plan: TensorPlan, source: Tensor, maps: Maps) -> Rows:
    """All rows of a plan whose rows can be computed separately."""
    count = maps[0].new_size if maps[0] is not None else len(source)
    return Rows((0, count), count, spread_of(plan, source, maps))


def drawn_shape(plan: TensorPlan, shape: list[int]) -> list[int]:
    """The shape of the numbers that are drawn for a new tensor of this shape."""
    reader = noisy_reader(plan)
    axis_map = plan.maps[reader] if reader is not None else None
    if reader is None or axis_map is None or _copies(axis_map) != 2:
        return shape
    return [axis_map.old_size if dimension == reader else size for dimension, size in enumerate(shape)]


def noisy_rows(plan: TensorPlan, source: Tensor, maps: Maps, rows: Rows) -> Tensor:
    """Some rows of the new weight, in the dtype of `source`.

    Args:
        plan: the plan of the tensor.
        source: the old rows from which they are computed.
        maps: the map that is still to be applied along each dimension. Along the first one it is that of
            these rows alone.
        rows: which rows they are.
    """
    reader = noisy_reader(plan)
    assert reader is not None
    axis_map = plan.maps[reader]
    assert axis_map is not None
    mapped = source.float() if is_half(source.dtype) else source
    factor, even = float(plan.terms[0].weight) * plan.scale, axis_map.even_shares is not None
    left = [(d, m) for d, m in enumerate(maps) if m is not None and not (even and d == reader)]
    for dimension, unit_map in left:
        mapped = unit_map.apply(mapped, dimension)
    mapped = mapped if factor == 1 else mapped * factor
    if even:
        if is_half(source.dtype) and (left or factor != 1):
            mapped = mapped.to(source.dtype).to(mapped.dtype)
        return _even_shares(plan, mapped, axis_map, reader, rows, source.dtype)
    noise = _drawn(plan, (rows.of, *mapped.shape[1:]), rows, plan.noise * rows.spread, mapped)
    return rounded(plan, mapped + axis_map.project_noise(noise, reader), source.dtype)


def rounded(plan: TensorPlan, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A finished weight in the dtype of its source."""
    reader = shared_reader(plan)
    axis_map = None if reader is None else plan.maps[reader]
    if not is_half(dtype) or reader is None or axis_map is None or tensor.shape[reader] != axis_map.new_size:
        return tensor.to(dtype)  # what `UnitMap.scale_sources` has made is copied later
    return round_shares(tensor, dtype, axis_map.heard, reader)


def spread_of(plan: TensorPlan, source: Tensor, maps: Maps) -> float:
    """The standard deviation of the entries of W' before noise, from W alone. Each entry counts as often, and
    with the factor, that the maps give it. It is summed in float64 by blocks of rows.
    """
    counts = [
        (m.power_sums(1), m.power_sums(2)) if m is not None else (torch.ones(n, dtype=torch.float64),) * 2
        for m, n in zip(maps, source.shape, strict=True)
    ]
    sums = [0.0, 0.0]
    step = max(1, BLOCK // max(1, source[0].numel())) if len(source) else 1
    for a in range(0, len(source), step):
        block = source[a : a + step].double().cpu()
        for power, values in enumerate((block, block.square())):
            for dimension in range(source.dim() - 1, 0, -1):
                values = values @ counts[dimension][power]
            sums[power] += float(values @ counts[0][power][a : a + step])
    factor = float(plan.terms[0].weight) * plan.scale
    total = math.prod(m.new_size if m is not None else n for m, n in zip(maps, source.shape, strict=True))
    variance = (sums[1] - sums[0] ** 2 / max(1, total)) / max(1, total - 1)
    return abs(factor) * math.sqrt(max(0.0, variance))


def _copies(axis_map: AxisMap) -> int | None:
    """How many copies each unit has, if all have equally many."""
    return None if axis_map.even_shares is None else axis_map.new_size // axis_map.old_size


def _even_shares(
    plan: TensorPlan, columns: Tensor, axis_map: AxisMap, reader: int, rows: Rows, dtype: torch.dtype
) -> Tensor:
    """The shares of old columns, numbers of `dtype`, which all have the same number of copies."""
    assert axis_map.even_shares is not None
    along, sizes = axis_map.even_shares
    count = sizes[along]
    std = plan.noise * rows.spread
    shape = [rows.of, *columns.shape[1:]]
    made = torch.empty(
        [len(columns), *shape[1:reader], axis_map.new_size, *shape[reader + 1 :]], dtype=dtype, device=columns.device
    )
    places = made.unflatten(reader, sizes).unbind(reader + along)
    if count == 2:
        deviation = _drawn(plan, shape, rows, std / math.sqrt(2), columns)
        if is_half(dtype):
            shares = pair_of(columns, deviation, dtype)
        else:
            half = columns / 2
            shares = [half + deviation, half - deviation]
    else:
        shape[reader] = axis_map.new_size
        deviations = list(_drawn(plan, shape, rows, std, columns).unflatten(reader, sizes).unbind(reader + along))
        mean = torch.stack(deviations).mean(0)
        deviations = [deviation - mean for deviation in deviations]
        if is_half(dtype):
            shares = shares_of(columns, deviations, dtype)
        else:
            shares = [deviation.add_(columns / count) for deviation in deviations]
    for place, share in zip(places, shares, strict=True):
        place.copy_(share)
    return made


def _drawn(plan: TensorPlan, shape: list[int] | tuple[int, ...], rows: Rows, std: float, like: Tensor) -> Tensor:
    drawn = normal(plan.name, plan.seed, "noise", shape, rows.here, std)
    return drawn.to(like.device, like.dtype)
