"""The weights of averaged checkpoints. Each shape of a decay of the learning rate is a set of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from meristem.errors import MeristemError, nearest

SHAPES: Mapping[str, Callable[[float], float]] = {  # what a step counts after this share of the decay
    "mean": lambda share: 1 - share,
    "1-sqrt": lambda share: 1 - math.sqrt(share),
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
}


def shares(count: int, weights: str | Sequence[float] = "mean") -> list[float]:
    """The weight of each of `count` checkpoints, the oldest first. They sum to 1.

    Args:
        count: the number of checkpoints.
        weights: "mean" (a linear decay), "1-sqrt" or "cosine" for the decay that they stand for, or one
            number for each checkpoint.

    Raises:
        MeristemError: if there is no such shape, or if the numbers are not `count` numbers of at least zero,
            not all of them zero.
    """
    if isinstance(weights, str):
        if weights not in SHAPES:
            raise MeristemError(f"unknown weights {weights!r}; {nearest(weights, SHAPES)}")
        left = [SHAPES[weights](number / count) for number in range(count + 1)]
        return [before - after for before, after in pairwise(left)]
    given = [float(weight) for weight in weights]
    if len(given) != count:
        raise MeristemError(f"{len(given)} weights for {count} checkpoints; give one for each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not sum(given) > 0:
        raise MeristemError(f"weights must be at least zero and not all zero, got {given}")
    return [weight / sum(given) for weight in given]
