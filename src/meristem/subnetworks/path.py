"""One step's path through a network: which blocks run, by what their updates are multiplied, and which share of each is kept.

Paths are drawn from a seed, the optimizer step and the name of the list of blocks, and from nothing else: ranks,
gradient accumulation and a resumed run agree without talking to each other.
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
        active: block l runs.
        scales: its update counts so often.
        width: the share of heads and feed-forward units that each block uses (1: all).
        seed, step: what the choice of these units is drawn from.
        frozen: blocks that run without being trained, and without passing gradients on.
    """

    active: tuple[bool, ...]
    scales: tuple[float, ...]
    width: float = 1.0
    seed: int = 0
    step: int = 0
    frozen: frozenset[int] = frozenset()

    @staticmethod
    def full(num_hidden_layers: int) -> Path:
        return Path((True,) * num_hidden_layers, (1.0,) * num_hidden_layers)

    @property
    def depth(self) -> int:
        return sum(self.active)


def generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Random numbers that depend on these three only."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {step} {purpose}".encode()))


def draw(keep: Sequence[float], sampling: Sampling, rng: torch.Generator) -> tuple[bool, ...]:
    """Which blocks run, given the probability of each.

    Args:
        keep: probabilities; those of 1 always run.
        sampling: "bernoulli" draws each block by itself (as published); "exact" draws as many as are expected, so that time and
            memory do not vary (the remainder of an expected number that is not whole is drawn), each block with its own probability:
            systematic sampling in random order (Madow 1949). The probabilities, laid end to end in random order, are a line; the blocks are
            those in whose stretches the points u, u + 1, u + 2, ... lie, u uniform in [0, 1).
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
    """By what each active block's update is multiplied.

    "none": 1 (RAPTR's main algorithm). "sqrt_gap": sqrt(distance to the next active block), which keeps the size of the stream
    at initialisation, where the updates are independent. "inv_p": 1 / probability, which keeps its mean (Progressive Layer
    Dropping). All are 1 at full depth.
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
