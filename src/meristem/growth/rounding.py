"""Rounding a grown tensor to half precision so that the copies of a unit still add up to what it was.

A reader of n copies holds n shares of each old column. Rounded one by one, their sum is off by n roundings, and
symmetry-breaking noise no longer cancels. Here all shares but the last are rounded to a grid that is coarse enough for the
last one, the old column minus the sum of the others, to be a number of the dtype itself. The sum is then exact. Where noise
is so large beside a weight that no such grid exists, that entry's noise shrinks until one does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meristem.algebra import UnitMap

HALF = (torch.bfloat16, torch.float16)


def is_half(dtype: torch.dtype) -> bool:
    """Whether a dtype has so few digits that the rounding of single weights shows in a network's outputs."""
    return dtype in HALF


def rounds_exactly(unit_map: UnitMap) -> bool:
    """Whether the coefficients are powers of two (or zero), which scale any number without rounding it."""
    if unit_map.dense is not None or unit_map.coefficient is None:
        return False
    mantissa, _ = torch.frexp(unit_map.coefficient)
    return bool(((mantissa.abs() == 0.5) | (mantissa == 0)).all())


def round_shares(tensor: Tensor, dtype: torch.dtype, heard: UnitMap, dim: int) -> Tensor:
    """`tensor` in `dtype`, with heard^T . result = heard^T . tensor rounded once, along `dim`.

    Args:
        tensor: float32 weights, with the new units along `dim`.
        dtype: bfloat16 or float16.
        heard: what readers hear of each new unit. Units that they hear with another weight than 1 or 0 are rounded plainly.
    """
    copies = _copies(heard)
    if copies is None:
        return tensor.to(dtype)
    units, shares = tensor.movedim(dim, 0), copies.shape[1]
    split = units[copies.clamp(min=0).flatten().to(tensor.device)].unflatten(0, copies.shape)  # (old, shares, ...)
    there = (copies >= 0).view(*copies.shape, *[1] * (units.dim() - 1)).to(tensor.device)
    split = torch.where(there, split, 0)
    total = split.sum(1).to(dtype).to(tensor.dtype)
    rounded = _shares_of(split, there, total, dtype) if shares > 1 else split
    result = units.to(dtype)
    result[copies[copies >= 0].to(tensor.device)] = rounded[(copies >= 0).to(tensor.device)].to(dtype)
    return result.movedim(0, dim)


def _shares_of(split: Tensor, there: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
    """`split` (old units, shares, ...) moved by less than a digit of `dtype` so that its shares sum to `total` exactly."""
    digits = 1 - int(torch.tensor(torch.finfo(dtype).eps).log2())  # of the significand, the hidden one included
    count = there.sum(1).clamp(min=1)
    mean = total / count
    deviation = torch.where(there, split - mean[:, None], 0)
    finest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    unit = _power_of_two(total.abs(), torch.floor) * 2.0 ** (1 - digits)  # what the last digit of `total` counts
    room = unit * (2**digits - count) - mean.abs()  # how far a share may lie from the mean on the grid of `unit`
    largest = deviation.abs().amax(1)
    deviation = deviation * torch.where(largest > room, room.clamp(min=0) / largest.clamp(min=1e-38), 1)[:, None]
    shares = torch.where(there, mean[:, None] + deviation, 0)
    grid = _power_of_two(shares.abs().amax(1) * (1 + count / 2**digits), torch.ceil) * 2.0**-digits
    grid = torch.minimum(grid, unit).clamp(min=finest)
    shares = torch.round(shares / grid[:, None]) * grid[:, None]
    last = there & (there.cumsum(1) == count[:, None])
    return torch.where(last, (total - torch.where(last, 0, shares).sum(1))[:, None], shares)


def _power_of_two(size: Tensor, towards) -> Tensor:
    """The power of two below (torch.floor) or above (torch.ceil) each positive number; 0 for 0."""
    mantissa, exponent = torch.frexp(size)  # size = mantissa * 2^exponent, 0.5 <= mantissa < 1
    exponent = exponent - 1 if towards is torch.floor else exponent - (mantissa == 0.5).to(exponent.dtype)
    return torch.where(size > 0, torch.ldexp(torch.ones_like(size), exponent), 0)


def _copies(heard: UnitMap) -> Tensor | None:
    """(old units, most copies) the new units that carry each old one, -1 where there are fewer; None if weights differ."""
    if heard.dense is not None or heard.index is None or heard.coefficient is None:
        return None
    if not bool(((heard.coefficient == 0) | (heard.coefficient == 1)).all()):
        return None
    carriers = torch.nonzero(heard.coefficient).flatten()
    sources = heard.index[carriers]
    order = torch.argsort(sources, stable=True)
    counts = torch.bincount(sources, minlength=heard.old_size)
    table = torch.full((heard.old_size, max(1, int(counts.max()))), -1)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(order)) - starts[sources[order]]
    table[sources[order], place] = carriers[order]
    return table
