"""ALiBi: the position slope of a head depends on its index and on the number of heads. A copy computes the
same as its original only with the same slope (Press et al. 2022, arXiv:2108.12409, section 3).
"""

from __future__ import annotations

import math

import torch

from meristem.algebra import AxisMap, UnitMap
from meristem.errors import MeristemError


def slopes(num_heads: int) -> torch.Tensor:
    """The slope of each head, of shape (num_heads,): a geometric series. If num_heads is not a power of two,
    odd powers of the next series follow it.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    first = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    extra = [2 ** (-4 * i / power) for i in range(1, 2 * (num_heads - power), 2)]
    return torch.tensor(first + extra, dtype=torch.float64)


def aligned_heads(old_heads: int, new_heads: int) -> AxisMap:
    """Heads grown under ALiBi. Each old head is read through the one new head that has its slope.

    The other new heads copy the old head of the closest slope. They are read with weight 0, and can learn.

    Raises:
        MeristemError: if an old slope does not occur among the new ones.
    """
    distance = (slopes(new_heads)[:, None] - slopes(old_heads)[None]).abs()
    home = distance.argmin(0)  # (old_heads,): the new head that carries each old one
    if float(distance[home, torch.arange(old_heads)].max()) > 1e-12 or len(set(home.tolist())) < old_heads:
        raise MeristemError(
            f"{new_heads} ALiBi heads do not include the slopes of {old_heads}; {2 * old_heads} heads would work"
        )
    index = distance.argmin(1)
    index[home] = torch.arange(old_heads)
    read = torch.zeros(new_heads, dtype=torch.float64)
    read[home] = 1.0
    return AxisMap(UnitMap.select(index, old_heads), UnitMap.select(index, old_heads, read), twins=False)


def has_alibi(anatomy) -> bool:
    """Whether attention in this network adds ALiBi slopes, by the override or by the config flag that it
    names.
    """
    flag = anatomy.override.alibi
    return bool(anatomy.builder.fact(flag)) if isinstance(flag, str) else flag
