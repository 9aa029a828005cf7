"""Random numbers by their place. Any rows of any tensor, on any device, in any order, get the same numbers.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") computes the n-th number from a key
and n alone. Here the key is a hash of the seed, the purpose and the tensor's name, and each block of rows has
its own first n. Sixteen bits of Philox select one of 65,536 equally likely quantiles of the normal
distribution. These are integers and a table, so every machine draws the same numbers. Their variance is
0.99998, and the largest is 4.3.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 16  # entries of a block of rows, or one row


def rows_of_a_block(shape: Sequence[int]) -> int:
    """How many rows of a tensor of this shape are drawn together. Whole blocks waste no numbers."""
    return max(1, BLOCK // max(1, math.prod(shape[1:])))


def normal(
    name: str, seed: int, purpose: str, shape: Sequence[int], rows: tuple[int, int] | None = None, std: float = 1.0
) -> Tensor:
    """Normal numbers in float32 on the CPU, which depend only on the seed, the purpose, the name and their
    place.

    Args:
        name: the name of the tensor.
        seed: the seed.
        purpose: what the numbers are for.
        shape: the shape of the whole tensor.
        rows: (first, last) along dimension 0, the last exclusive. All by default.
        std: their standard deviation.

    Returns:
        A tensor of `shape`, with only these rows.
    """
    count = shape[0] if len(shape) else 1
    first, last = rows or (0, count)
    width, step = math.prod(shape[1:]), rows_of_a_block(shape)
    key = np.frombuffer(hashlib.blake2b(f"{seed} {purpose} {name}".encode(), digest_size=16).digest(), dtype="<u8")
    quantiles = _quantiles(std)
    drawn = np.empty((last - first, width), dtype=np.float32)
    for block in range(first // step, -(-last // step)) if last > first and width else ():
        begin, end = block * step, min((block + 1) * step, count)
        a, b = max(begin, first), min(end, last)
        entries = slice((a - begin) * width, (b - begin) * width)
        raw = np.random.Philox(counter=[0, 0, 0, block], key=key).random_raw(-(-entries.stop // 4))
        bits = raw.astype("<u8", copy=False).view("<u2")[entries]
        np.take(quantiles, bits, out=drawn[a - first : b - first].reshape(-1), mode="clip")
    return torch.from_numpy(drawn).view([last - first, *shape[1:]] if len(shape) else [])


@functools.lru_cache(8)
def _quantiles(std: float = 1.0) -> np.ndarray:
    """(65536,) float32: the normal numbers in the middle of equally likely intervals, in ascending order."""
    if std != 1:
        return _quantiles() * np.float32(std)
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    return torch.special.ndtri(middles).float().numpy()
