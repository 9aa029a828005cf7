"""Conversions between scikit-learn's arrays and torch's tensors: seeds, devices, batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

PIECE = 16_384  # rows whose activities are computed together


def tensor_of(array: Any, dtype: torch.dtype | None = None, device: str = "cpu") -> Tensor:
    """A tensor with the numbers of an array and its own memory, for any strides and flags of the array."""
    return torch.tensor(np.ascontiguousarray(array), dtype=dtype, device=device)


def generator_of(random_state: Any, device: str = "cpu") -> torch.Generator:
    """A torch generator seeded from a random state of scikit-learn (None, a number or a RandomState)."""
    seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    return torch.Generator(device).manual_seed(seed)


def seed_of(seed: int, number: int, which: int) -> int:
    """A seed for one part of one round: a pure function of the three arguments."""
    digest = hashlib.sha256(f"{seed} {number} {which}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def in_pieces(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The result of a function for each row of x (n, ...). Intermediate results take the memory of `PIECE`
    rows.
    """
    return torch.cat([function(piece) for piece in x.split(PIECE)])


def batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The row numbers 0 .. count - 1 in random order, in batches."""
    yield from torch.randperm(count, generator=generator, device=generator.device).split(batch_size)
