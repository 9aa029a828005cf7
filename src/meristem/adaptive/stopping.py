"""Early stopping, and the state that is kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Stopping:
    """Watches a loss that is checked at intervals.

    Args:
        tensors: the trained tensors. A copy of them at the lowest loss is kept. Without tensors, it only
            stops.
        patience: the number of checks without a gain after which to stop.
        min_gain: the share of the lowest loss by which the loss must fall to count as a gain.
    """

    def __init__(self, tensors: Iterable[Tensor], patience: int, min_gain: float = 0.0) -> None:
        self.tensors, self.patience, self.min_gain = list(tensors), patience, min_gain
        self.lowest, self.lowest_at, self.stale = float("inf"), 0, 0
        self._kept: list[Tensor] = []

    def over(self, loss: float, at: int) -> bool:
        """Record a loss after `at` steps. Returns whether to stop."""
        self.stale = 0 if loss < self.lowest * (1 - self.min_gain) else self.stale + 1
        if loss < self.lowest:
            self.lowest, self.lowest_at = loss, at
            self._kept = [tensor.detach().clone() for tensor in self.tensors]
        return self.stale >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the tensors of the lowest loss. If no loss was recorded, they are unchanged."""
        if self._kept:
            for tensor, kept in zip(self.tensors, self._kept, strict=True):
                tensor.copy_(kept)
