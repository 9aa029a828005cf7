"""Random numbers by their place: any rows of any tensor, on any device, in any order, are drawn the same.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") makes the n-th number from a key and n alone. Here the
key is a hash of the seed, the purpose and the tensor's name, and each block of rows counts from a place of its own.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 16  # entries of a block of rows, or one row
MANY = 16  # blocks that are worth several threads


def normal(name: str, seed: int, purpose: str, shape: Sequence[int], rows: tuple[int, int] | None = None) -> Tensor:
    """Standard normal numbers in float32 on the CPU, which depend on the seed, the purpose, the name and their place only.

    Args:
        shape: of the whole tensor.
        rows: (first, last) along dimension 0, the last exclusive; all by default.

    Returns:
        A tensor of `shape`, with these rows only.
    """
    first, last = rows or (0, shape[0] if len(shape) else 1)
    width = math.prod(shape[1:])
    step = max(1, BLOCK // max(1, width))
    key = np.frombuffer(hashlib.blake2b(f"{seed} {purpose} {name}".encode(), digest_size=16).digest(), dtype="<u8")
    drawn = np.empty((last - first, width), dtype=np.float32)

    def draw(block: int) -> None:
        begin, end = block * step, min((block + 1) * step, shape[0] if len(shape) else 1)
        a, b = max(begin, first), min(end, last)
        numbers = np.random.Generator(np.random.Philox(counter=[0, 0, 0, block], key=key))
        if (a, b) == (begin, end):
            numbers.standard_normal(out=drawn[a - first : b - first], dtype=np.float32)
        else:  # what of the block is not asked for is drawn, too
            whole = numbers.standard_normal((end - begin, width), dtype=np.float32)
            drawn[a - first : b - first] = whole[a - begin : b - begin]

    blocks = range(first // step, -(-last // step)) if last > first and width else range(0)
    if len(blocks) < MANY:
        for block in blocks:
            draw(block)
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(draw, blocks))
    return torch.from_numpy(drawn).view([last - first, *shape[1:]] if len(shape) else [])
