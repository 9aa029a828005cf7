"""The rows that EnergyNet learns from: weights become repetitions where they can, and the order depends only
on the rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from meristem.adaptive.targets import repetitions

MOST_REPEATED = 4  # times as many rows as there were


def weighted_rows(X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (n_samples, features), targets and weights (n_samples,) to learn from, sorted.

    Whole multiples of the smallest weight become repeated rows of weight 1, as in scikit-learn. Other weights
    are kept, with mean 1. Rows of weight 0 are left out.
    """
    used = weight > 0
    X, y, weight = X[used], y[used], weight[used]
    times = repetitions(weight)
    if times is not None and times.sum() <= MOST_REPEATED * len(X):
        X, y, weight = X.repeat(times, 0), y.repeat(times), np.ones(int(times.sum()))
    order = np.lexsort((weight, y, *X.T))
    return X[order], y[order], weight[order] / weight.mean()


def sorted_rows(x: Tensor) -> Tensor:
    """Rows (n, features) in an order that depends only on the rows."""
    return x[torch.as_tensor(np.lexsort(tuple(x.cpu().numpy().T)), device=x.device)]
