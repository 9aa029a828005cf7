"""Features that repeat one another. A copy says nothing new, but the noise on a feature and on its copy is one: a density spends units on
saying so. Structure is learned on one of each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def equal_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each set of equal columns of x (n, features), in their order (distinct,), and which of those each column is (features,)."""
    _, group = torch.unique(x, dim=1, return_inverse=True)
    _, first = np.unique(group.cpu().numpy(), return_index=True)
    in_order = np.argsort(first)
    number = torch.as_tensor(np.argsort(in_order), device=x.device)
    return torch.as_tensor(first[in_order], device=x.device), number[group]


def shared_out(weights: Tensor, which: Tensor) -> Tensor:
    """Weights of the distinct features (units, distinct) for all of them (units, features): each copy carries an equal share."""
    return (weights / torch.bincount(which))[:, which]
