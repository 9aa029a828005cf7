"""In which order a run reads its data: a pure function of (seed, position in the run)."""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset


class Order:
    """Rounds through the data, each shuffled in a new way.

    Args:
        examples: how many there are.
        seed: of the order.
        offset: examples already read by earlier stages, which are not read again.
    """

    def __init__(self, examples: int, seed: int = 0, offset: int = 0) -> None:
        self.examples, self.seed, self.offset = examples, seed, offset
        self._rounds: dict[int, np.ndarray] = {}

    def at(self, position: int) -> int:
        """The example that is read at this position of the run."""
        turn, place = divmod(position + self.offset, self.examples)
        if turn not in self._rounds:
            self._rounds[turn] = np.random.default_rng((self.seed, turn)).permutation(self.examples)
        return int(self._rounds[turn][place])


class Ordered(Dataset):
    """A data set that a run reads from its first to its last position: `count` examples, in an order of its own."""

    def __init__(self, count: int, order: Order) -> None:
        self.count, self.order = count, order

    def __len__(self) -> int:
        return self.count
