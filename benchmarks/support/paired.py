"""What benchmarks with folds share: lines on the terminal, and sides compared fold by fold."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

from scipy.stats import ttest_rel


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def summary(scores: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, Any]]:
    """Mean and deviation of each side's folds, and p of a paired t-test against the reference (none for equal scores)."""
    return {
        side: {
            "mean": mean(values),
            "sd": stdev(values),
            f"p_against_{reference}": None
            if values == scores[reference]
            else float(ttest_rel(scores[reference], values).pvalue),
        }
        for side, values in scores.items()
    }
