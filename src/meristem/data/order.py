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


TUNE_SHARE = 10  # one training example in ten is kept for tuning


def splits(
    examples: int, held_out: int, fraction: float = 1.0, eval_examples: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which training examples to train on, which of them to tune on, and which held-out ones to evaluate on; no example is in two.

    Args:
        examples, held_out: how many there are.
        fraction: of what is left to train on, a random choice that is the same on every machine.
        eval_examples: how many held-out examples to use; all of them by default.
    """
    order = np.random.default_rng(0).permutation(examples)
    tuning = examples // TUNE_SHARE
    rest = order[: examples - tuning]
    kept = np.random.default_rng(1).permutation(held_out)[:eval_examples]
    return rest[: max(1, round(fraction * len(rest)))], order[examples - tuning :], kept


class Ordered(Dataset):
    """A data set that a run reads from its first to its last position: `count` examples, in an order of its own."""

    def __init__(self, count: int, order: Order) -> None:
        self.count, self.order = count, order

    def __len__(self) -> int:
        return self.count
