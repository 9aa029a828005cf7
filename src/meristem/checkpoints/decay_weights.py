"""The weights of averaged checkpoints: each shape of a learning rate's decay is a set of them."""

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
    """What each of so many checkpoints counts, the oldest first; together one.

    Args:
        weights: "mean" (a linear decay), "1-sqrt" or "cosine": the decay that they stand for; or a number for each.

    Raises:
        MeristemError: for a shape that there is not, numbers that are not as many, negative, or all zero.
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
