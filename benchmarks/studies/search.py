"""The one search for a number (a learning rate, a penalty): a grid that goes on at either edge while the edge is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import mean
from typing import Any

from benchmarks.studies.study import Tune

FURTHER = 5  # values at most that a search goes on by


def search(
    values: Iterable[float],
    loss: Callable[[float], float | tuple[float, ...]],
    step: float = 2.0,
    further: int = FURTHER,
) -> float:
    """The value of the lowest loss.

    Args:
        values: where it begins.
        loss: infinite where a run diverged. Of a tuple the first decides, and the next among equals.
        step: the factor between an edge and the next value beyond it.

    Raises:
        ValueError: if every loss is infinite.
    """
    losses = {value: _tuple(loss(value)) for value in values}
    for _ in range(further):
        best = min(losses, key=losses.__getitem__)
        edge = {min(losses): 1 / step, max(losses): step}.get(best)
        if edge is None or len(losses) == 1:
            break
        losses[best * edge] = _tuple(loss(best * edge))
    best = min(losses, key=losses.__getitem__)
    if not math.isfinite(losses[best][0]):
        raise ValueError(f"every value diverged: {sorted(losses)}")
    return best


def tuned(tune: Tune, row: Callable[[float, float, int], Mapping[str, Any]]) -> float:
    """A side's learning rate: the lowest mean loss over the tuning seeds.

    Args:
        row: (rate, budget, seed) to the row of the search, measured or looked up; its loss is None where the run diverged.

    Raises:
        ValueError: if every rate diverged at the search's own budget.
    """

    def loss(rate: float, budget: float) -> float:
        found = [row(rate, budget, seed)["loss"] for seed in tune.seeds]
        return mean(math.inf if own is None else own for own in found)

    first = search(tune.rates, lambda rate: loss(rate, tune.budget))
    if tune.again is None:
        return first
    longer = tune.again
    return lowered(first, lambda rate: loss(rate, longer))


def lowered(value: float, loss: Callable[[float], float], step: float = 2.0, further: int = FURTHER) -> float:
    """The value or, while it has a lower loss, the next one below."""
    least = loss(value)
    for _ in range(further):
        below = loss(value / step)
        if not below < least:
            break
        value, least = value / step, below
    return value


def _tuple(loss: float | tuple[float, ...]) -> tuple[float, ...]:
    return loss if isinstance(loss, tuple) else (loss,)
