"""The one place for statistics: spreads, paired differences with bootstrap intervals, and tests of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

LEVEL, DRAWS = 0.95, 10_000
FEW = 5  # differences, whose resamples can all be enumerated, and whose interval is too narrow


@dataclass(frozen=True)
class Effect:
    """The mean of paired differences, the bootstrap's interval at 95 %, the smallest and the largest difference, and p of a one-sided t-test in the direction of the mean."""

    mean: float
    low: float
    high: float
    seeds: int
    least: float
    most: float
    p: float

    @property
    def is_below(self) -> bool:
        """Whether it is shown to be below zero: by the whole interval and, of up to five seeds, by every one and by a one-sided t-test too."""
        return self.high < 0 and (self.seeds > FEW or (self.most < 0 and self.p < 1 - LEVEL))

    @property
    def is_above(self) -> bool:
        """The same for above zero."""
        return self.low > 0 and (self.seeds > FEW or (self.least > 0 and self.p < 1 - LEVEL))

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def effect(values: Sequence[float]) -> Effect:
    """Of paired differences, one for each seed: their mean with the percentile bootstrap's interval, by all resamples of up to five values, by
    10,000 draws of more. With three seeds it is about the range of the three, far from a level of 95 % (see `Effect.is_below`). A run that diverged has an infinite difference.

    Raises:
        ValueError: for no values.
    """
    if not values:
        raise ValueError("no paired differences")
    if len(values) <= FEW:
        means = np.array([mean(drawn) for drawn in itertools.product(values, repeat=len(values))])
    else:
        drawn = np.random.default_rng(0).choice(np.asarray(values), (DRAWS, len(values)))
        means = drawn.mean(1)
    between: Any = "linear" if np.isfinite(means).all() else "nearest"  # between two infinities there is nothing
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method=between)
    return Effect(mean(values), float(low), float(high), len(values), min(values), max(values), _p(values))


def _p(values: Sequence[float]) -> float:
    """Of the one-sided t-test. Where runs diverged, signs alone decide, and p is 0."""
    if not all(map(math.isfinite, values)):
        return 0.0
    spread = deviation(values)
    if spread is None or not any(values):
        return 1.0
    from scipy.stats import t

    return float(t.sf(abs(mean(values)) / (spread / math.sqrt(len(values))), len(values) - 1)) if spread else 0.0


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation; None of a single value, which has none."""
    return stdev(values) if len(values) > 1 else None


def sign_flip(differences: Sequence[float]) -> float:
    """p of the exact two-sided test: the share of all sign patterns whose mean is at least as far from zero."""
    seen = abs(sum(differences))
    patterns = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    return mean(s >= seen - 1e-12 for s in sums)


def t_test(values: Sequence[float], reference: Sequence[float] | None = None) -> float | None:
    """p of the t-test of values against zero, or paired with a reference; None where all are equal to it."""
    from scipy.stats import ttest_1samp, ttest_rel

    if reference is None:
        return float(ttest_1samp(values, 0).pvalue)
    return None if list(values) == list(reference) else float(ttest_rel(reference, values).pvalue)


def summary(scores: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, Any]]:
    """Mean and deviation of each side's folds, and p of a paired t-test against the reference (none for equal scores)."""
    return {
        side: {"mean": mean(own), "sd": deviation(own), f"p_against_{reference}": t_test(own, scores[reference])}
        for side, own in scores.items()
    }
