"""The numbers that can be learned: those whose squares are numbers of float64 too."""

from __future__ import annotations

import numpy as np

from meristem.errors import MeristemError

LARGEST = 1e100
SMALLEST = 1e-100  # of the range of a target


def check_target(y: np.ndarray, what: str) -> None:
    """Check the range of a target (n_samples,) of finite numbers.

    Raises:
        MeristemError: if its numbers, or their differences, have no squares in float64.
    """
    largest = float(np.abs(y).max(initial=0))
    if largest > LARGEST:
        raise MeristemError(
            f"{what} has numbers as large as {largest:.3g}; numbers up to {LARGEST:g} can be learned, so divide it first"
        )
    span = float(np.ptp(y)) if len(y) else 0.0
    if 0 < span < SMALLEST:
        raise MeristemError(
            f"{what} differs by {span:.3g} at most; differences from {SMALLEST:g} can be learned, so multiply it first"
        )
