"""The path of one step through a network: which blocks run, the factors of their updates, and the share of
each that is used.

A path depends only on a seed, the optimizer step and the name of the list of blocks. So ranks, gradient
accumulation and a resumed run agree without communication.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch

Sampling = Literal["exact", "bernoulli"]
Scaling = Literal["none", "sqrt_gap", "inv_p"]


@dataclass(frozen=True)
class Path:
    """What runs in one step.

    Args:
        active: for each block, whether it runs.
        scales: for each block, the factor of its update.
        width: the share of heads and feed-forward units that each block uses (1 means all).
        seed: the seed from which these units are drawn.
        step: the optimizer step.
        frozen: blocks that run without training, and pass no gradients on.
    """

    active: tuple[bool, ...]
    scales: tuple[float, ...]
    width: float = 1.0
    seed: int = 0
    step: int = 0
    frozen: frozenset[int] = frozenset()

    @staticmethod
    def full(num_hidden_layers: int) -> Path:
        """The path on which all blocks run."""
        return Path((True,) * num_hidden_layers, (1.0,) * num_hidden_layers)

    @property
    def depth(self) -> int:
        """The number of blocks that run."""
        return sum(self.active)


def generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """A generator of random numbers that depend only on these three values."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {step} {purpose}".encode()))


def draw(keep: Sequence[float], sampling: Sampling, rng: torch.Generator) -> tuple[bool, ...]:
    """Which blocks run, from the probability of each.

    "bernoulli" draws each block independently, as in the papers. "exact" draws as many blocks as are
    expected, so that time and memory do not vary, and each block keeps its own probability. If the expected
    number is not whole, the remainder is drawn. "exact" is systematic sampling in random order (Madow 1949):
    the probabilities are put end to end on a line in random order, and the blocks run in whose intervals the
    points u, u + 1, u + 2, ... lie, with u uniform in [0, 1).

    Args:
        keep: the probability of each block. Those of 1 always run.
        sampling: "bernoulli" or "exact".
        rng: the random numbers.
    """
    if sampling == "bernoulli":
        uniform = torch.rand(len(keep), generator=rng).tolist()
        return tuple(u < p for u, p in zip(uniform, keep, strict=True))
    free = [layer for layer, p in enumerate(keep) if p < 1]
    order = [free[i] for i in torch.randperm(len(free), generator=rng).tolist()]
    first = float(torch.rand((), generator=rng, dtype=torch.float64))
    ends = [round(end, 9) for end in accumulate((keep[layer] for layer in order), initial=0.0)]
    points = [math.ceil(end - first) for end in ends]  # how many points lie in front of each end
    chosen = {layer for layer, (before, after) in zip(order, pairwise(points), strict=True) if after > before}
    return tuple(p >= 1 or layer in chosen for layer, p in enumerate(keep))


def scales(active: Sequence[bool], keep: Sequence[float], scaling: Scaling) -> tuple[float, ...]:
    """The factor of the update of each active block. All factors are 1 at full depth.

    Args:
        active: for each block, whether it runs.
        keep: the probability of each block.
        scaling: "none": 1 (the main algorithm of RAPTR). "sqrt_gap": the square root of the distance to the
            next active block, which keeps the size of the residual stream at initialisation, where updates
            are independent. "inv_p": 1 / probability, which keeps its mean (Progressive Layer Dropping).
    """
    if scaling == "none":
        return (1.0,) * len(active)
    if scaling == "inv_p":
        return tuple(1 / p if on else 1.0 for on, p in zip(active, keep, strict=True))
    found = [layer for layer, on in enumerate(active) if on]
    factors = [1.0] * len(active)
    for layer, following in zip(found, [*found[1:], len(active)], strict=True):
        factors[layer] = math.sqrt(following - layer)
    return tuple(factors)
