"""When a training stops early, and which of its states is kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Stopping:
    """Watches a loss that is checked now and then.

    Args:
        tensors: what is trained; a copy is kept from where the loss was lowest. None are needed to stop only.
        patience: stop after so many checks without a gain. min_gain: the share of the lowest loss by which it must fall to count.
    """

    def __init__(self, tensors: Iterable[Tensor], patience: int, min_gain: float = 0.0) -> None:
        self.tensors, self.patience, self.min_gain = list(tensors), patience, min_gain
        self.lowest, self.lowest_at, self.stale = float("inf"), 0, 0
        self._kept: list[Tensor] = []

    def over(self, loss: float, at: int) -> bool:
        """Note a loss after `at` steps; whether to stop."""
        self.stale = 0 if loss < self.lowest * (1 - self.min_gain) else self.stale + 1
        if loss < self.lowest:
            self.lowest, self.lowest_at = loss, at
            self._kept = [tensor.detach().clone() for tensor in self.tensors]
        return self.stale >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was trained as it was at the lowest loss; if no loss was noted it stays."""
        if self._kept:
            for tensor, kept in zip(self.tensors, self._kept, strict=True):
                tensor.copy_(kept)
