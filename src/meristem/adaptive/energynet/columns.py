"""The visible units of the first machine: one for each set of equal features, and categorical units for
one-hot features.

A copy of a feature adds no information, but a density would use hidden units to model that both are equal. In
one-hot features exactly one is 1, which a density of independent units would have to model in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meristem.adaptive.rbm.visible import check_groups

Categories = Sequence[int] | str


def equal_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each set of equal columns of x (n, features), in their order (distinct,), and for each
    column its place among those (features,).
    """
    _, group = torch.unique(x, dim=1, return_inverse=True)
    _, first = np.unique(group.cpu().numpy(), return_index=True)
    in_order = np.argsort(first)
    number = torch.as_tensor(np.argsort(in_order), device=x.device)
    return torch.as_tensor(first[in_order], device=x.device), number[group]


def shared_out(weights: Tensor, which: Tensor) -> Tensor:
    """Weights of the distinct features (units, distinct), divided among all features (units, features). Each
    copy has an equal share.
    """
    return (weights / torch.bincount(which))[:, which]


def one_hot_groups(x: np.ndarray) -> list[list[int]]:
    """Runs of adjacent columns of x (n, features) that hold only zeros and ones, with exactly one 1 in every
    row. The search starts at the left.
    """
    ones = (x == 1).astype(np.int64)
    flags = ((x == 0) | (x == 1)).all(0)
    groups, start = [], 0
    while start < x.shape[1]:
        total, end, found = np.zeros(len(x), dtype=np.int64), start, 0
        while end < x.shape[1] and flags[end]:
            total, end = total + ones[:, end], end + 1
            if total.max() > 1:
                break
            if total.min() == 1 and end - start > 1:
                found = end
                break
        if found:
            groups.append(list(range(start, found)))
        start = found or start + 1
    return groups


def groups_of(x: np.ndarray, categories: Categories) -> list[list[int]]:
    """The columns of each categorical unit: "auto" finds them, and sizes say that they are the last columns.

    Raises:
        MeristemError: if the last columns are not groups of these sizes.
    """
    if isinstance(categories, str):
        return one_hot_groups(x)
    check_groups(x, categories)
    ends = x.shape[1] - sum(categories) + np.cumsum([0, *categories])
    return [list(range(low, high)) for low, high in itertools.pairwise(ends)]


@dataclass(frozen=True)
class Columns:
    """The map from features to the visible units of a machine.

    Args:
        read: the feature of each visible unit (visible units,), plain ones first.
        which: the visible unit of each feature (features,).
        sizes: the sizes of the categorical units, which are the machine's last.
    """

    read: Tensor
    which: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, groups: Sequence[Sequence[int]]) -> Columns:
        """The columns of scaled features x (n, features), given the columns of each categorical unit."""
        grouped = torch.tensor([column for group in groups for column in group], dtype=torch.long, device=x.device)
        is_plain = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        is_plain[grouped] = False
        plain = torch.nonzero(is_plain)[:, 0]
        distinct, number = equal_columns(x[:, plain]) if len(plain) else (plain, plain)
        which = torch.empty(x.shape[1], dtype=torch.long, device=x.device)
        which[plain] = number
        which[grouped] = len(distinct) + torch.arange(len(grouped), device=x.device)
        return cls(torch.cat([plain[distinct], grouped]), which, tuple(len(group) for group in groups))
