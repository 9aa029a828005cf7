"""Round a grown tensor to half precision so that the copies of a unit still sum to what it was.

A reader of n copies holds n shares of each old column. If they are rounded one by one, their sum is off by n
roundings, and symmetry-breaking noise no longer cancels. Here all shares but the last are rounded to a grid.
The grid is so coarse that the last share, the old column minus the sum of the others, is a number of the
dtype. The sum is then exact. If the noise is so large compared to a weight that no such grid exists, the
noise of that entry is reduced until one does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from meristem.algebra import UnitMap

HALF = (torch.bfloat16, torch.float16)
BITS = {  # as whole numbers of this type: those of the exponent, and those of the mantissa
    torch.float32: (torch.int32, 0x7F800000, 0x007FFFFF),
    torch.float64: (torch.int64, 0x7FF0000000000000, 0x000FFFFFFFFFFFFF),
}


def is_half(dtype: torch.dtype) -> bool:
    """Whether a dtype has so few digits that rounding single weights changes the outputs of a network
    visibly.
    """
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
        tensor: weights in float32 or float64, with the new units along `dim`.
        dtype: bfloat16 or float16.
        heard: what readers receive from each new unit. Units with another weight than 1 or 0 are rounded
            plainly.
        dim: the dimension of the new units.
    """
    if heard.copies_only and heard.repeated is not None:
        along, sizes = heard.repeated
        split = tensor.unflatten(dim, sizes)
        parts = split.unbind(dim % tensor.dim() + along)
        result = torch.empty_like(split, dtype=dtype)
        for place, part in zip(result.unbind(dim % tensor.dim() + along), _exact_shares(parts, dtype), strict=True):
            place.copy_(part)
        return result.flatten(dim % tensor.dim(), dim % tensor.dim() + 1)
    carriers = heard.carriers
    return tensor.to(dtype) if carriers is None else _round_uneven(tensor, dtype, carriers, dim)


def _round_uneven(tensor: Tensor, dtype: torch.dtype, carriers: Tensor, dim: int) -> Tensor:
    """The same if old units have different numbers of copies: one number of copies at a time."""
    units = tensor.movedim(dim, 0)
    result = units.to(dtype)
    counts = (carriers >= 0).sum(1)
    for count in counts.unique().tolist():
        table = carriers[counts == count, :count].to(tensor.device)
        if count:
            parts = [units[table[:, number]] for number in range(count)]
            for number, part in enumerate(_exact_shares(parts, dtype)):
                result[table[:, number]] = part.to(dtype)
    return result.movedim(0, dim)


def _exact_shares(parts: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """`parts`, which are shares of one sum, in their own dtype with numbers of `dtype`. Each moves by less
    than a digit, so that they sum exactly to their sum rounded once.
    """
    total = functools.reduce(torch.add, parts).to(dtype).to(parts[0].dtype)
    if len(parts) == 1:
        return [total]
    mean = total / len(parts)
    return shares_of(total, [part - mean for part in parts], dtype)


def shares_of(total: Tensor, deviations: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Numbers of `dtype`, in the dtype of `total`, that sum to `total` exactly: equal shares, each moved by
    its deviation.

    Args:
        total: numbers of `dtype`.
        deviations: at least two for each entry, with a sum of zero. They are changed in place.
        dtype: bfloat16 or float16.
    """
    count = len(deviations)
    mean, unit, room = _room(total, count, dtype)
    largest = _largest(deviations)
    if largest.numel() and not bool((room - largest).amin() >= 0):
        shrunk = torch.where(largest > room, room.clamp(min=0) / largest.clamp(min=1e-38), 1)
        deviations = [deviation * shrunk for deviation in deviations]
    shares = [deviation.add_(mean) for deviation in deviations]
    grid = _grid(_largest(shares), unit, count, dtype)
    kept = [share.div_(grid).round_().mul_(grid) for share in shares[:-1]]
    return [*kept, functools.reduce(torch.sub, kept, total)]


def pair_of(total: Tensor, deviation: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """`shares_of` two, one moved by `deviation` (changed in place) and one by its negative, in half as many
    passes.
    """
    digits, power, half = _digits(dtype), _power_of_two_below(total), total / 2
    size = half.abs()
    low = torch.sub(size, power, alpha=(2**digits - 2) * 2.0 ** (1 - digits)).clamp_(max=0)  # minus the room of `_room`
    torch.maximum(deviation, low, out=deviation)
    torch.minimum(deviation, low.neg_(), out=deviation)
    largest = size.add_(torch.abs(deviation, out=low))
    grid = _grid(largest, power.mul_(2.0 ** (1 - digits)), 2, dtype)
    first = half.add_(deviation).div_(grid).round_().mul_(grid)
    return [first, total - first]


def _room(total: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """An equal share, the value of the last digit of `total`, and how far a share may be from an equal one on
    the grid of that digit.
    """
    digits = _digits(dtype)
    mean = total / count
    unit = _power_of_two_below(total).mul_(2.0 ** (1 - digits))
    return mean, unit, (unit * (2**digits - count)).sub_(mean.abs())


def _grid(largest: Tensor, unit: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The distance of the numbers to which all shares but the last are rounded. `largest` is the largest
    absolute value, changed in place.
    """
    digits = _digits(dtype)
    finest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    grid = _power_of_two_above(largest.mul_(1 + count / 2**digits)).mul_(2.0**-digits)
    return torch.minimum(grid, unit, out=grid).clamp_(min=finest)


def _digits(dtype: torch.dtype) -> int:
    """The digits of the significand, the hidden one included."""
    return 1 - round(math.log2(torch.finfo(dtype).eps))


def _largest(parts: Sequence[Tensor]) -> Tensor:
    """The largest absolute value, entry by entry."""
    return functools.reduce(torch.maximum, [part.abs() for part in parts])


def _power_of_two_below(size: Tensor) -> Tensor:
    """The power of two at or below the absolute value of each number. 0 for 0 and for numbers that have no
    leading digit.
    """
    whole, exponent, _ = BITS[size.dtype]
    return size.view(whole).bitwise_and(exponent).view(size.dtype)


def _power_of_two_above(size: Tensor) -> Tensor:
    """The power of two at or above each positive number, written in its place. 0 for 0."""
    whole, exponent, mantissa = BITS[size.dtype]
    return size.view(whole).add_(mantissa).bitwise_and_(exponent).view(size.dtype)
