"""Piecewise linear encoding of numbers (Gorishniy, Rubachev & Babenko 2022, arXiv:2203.05556, section
3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

BINS = 8  # of each feature, at most
QUANTILE_ROWS = 100_000  # from which the edges are found
FEWEST = 3  # a feature with fewer different values gets no bins


@dataclass(frozen=True)
class Bins:
    """Encode features in bins: bin b of feature j is min(max((x_j - low) / span, 0), 1), the share of the bin
    that lies below x_j.

    Args:
        input: the number of the feature that each bin belongs to (bins,).
        low: the lower edge of each bin (bins,).
        span: the length of each bin (bins,).
    """

    input: Tensor
    low: Tensor
    span: Tensor

    @property
    def count(self) -> int:
        return len(self.low)

    @classmethod
    def of(cls, x: Tensor, count: int = BINS) -> Self | None:
        """Bins between quantiles of the features of x (n, inputs), or None if no feature has enough different
        values.
        """
        inputs, lows, spans = [], [], []
        edges = torch.quantile(
            x[:QUANTILE_ROWS], torch.linspace(0, 1, count + 1, dtype=x.dtype, device=x.device), dim=0
        )
        for number, column in enumerate(edges.T):
            distinct = torch.unique(column)
            if len(distinct) <= FEWEST:
                continue
            inputs += [number] * (len(distinct) - 1)
            lows.append(distinct[:-1])
            spans.append(distinct.diff())
        if not inputs:
            return None
        return cls(torch.tensor(inputs, device=x.device), torch.cat(lows), torch.cat(spans))

    @classmethod
    def empty(cls, count: int) -> Self:
        """`count` bins of zeros, into which a state dict can be loaded."""
        ones = torch.ones(count, dtype=torch.float64)
        return cls(torch.zeros(count, dtype=torch.long), 0 * ones, ones)
