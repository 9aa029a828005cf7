"""In which order a run reads its data: a pure function of (seed, position in the run)."""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset

from meristem.streams import stream

ROUNDS = 6
WORD = (1 << 64) - 1


class Order:
    """Rounds through the data, each shuffled in a new way, without a list of the examples: a keyed permutation of 0..examples - 1 (a Feistel
    network on the next power of four, walked along until it meets a number below `examples`; Black and Rogaway 2002).

    Args:
        examples: how many there are.
        seed: of the order.
        offset: examples already read by earlier stages, which are not read again.
    """

    def __init__(self, examples: int, seed: int = 0, offset: int = 0) -> None:
        self.examples, self.seed, self.offset = examples, seed, offset
        self._half = max(1, ((examples - 1).bit_length() + 1) // 2)
        self._keys: tuple[int, list[int]] = (-1, [])

    def at(self, position: int) -> int:
        """The example that is read at this position of the run."""
        turn, place = divmod(position + self.offset, self.examples)
        if self._keys[0] != turn:
            self._keys = (
                turn,
                [stream(self.seed, turn, step) << 32 | stream(self.seed, turn, ~step) for step in range(ROUNDS)],
            )
        place = self._permuted(place)
        while place >= self.examples:
            place = self._permuted(place)
        return place

    def _permuted(self, place: int) -> int:
        half = self._half
        mask = (1 << half) - 1
        left, right = place >> half, place & mask
        for key in self._keys[1]:
            mixed = ((right ^ key) * 0xBF58476D1CE4E5B9) & WORD
            mixed = ((mixed ^ mixed >> 29) * 0x94D049BB133111EB) & WORD
            left, right = right, left ^ (mixed >> 32 & mask)
        return left << half | right


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
