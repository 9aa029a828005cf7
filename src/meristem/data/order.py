"""In which order a run reads its data: a pure function of (seed, position in the run)."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


BLOCK = 1000  # places in which the shares of several sources are exact


class WeightedOrder(Order):
    """Several sources, each in an order of its own, in shares that hold for every stretch of the run: of any first `n` places a source with
    share `w` has `n w`, give or take a few. Like `Order`, a pure function of (seed, position).

    Args:
        examples: of each source; numbered through, the first source's first.
        weights: of each source, above zero. Shares are whole thousandths, at least one.
        seed, offset: see `Order`.
    """

    def __init__(self, examples: Sequence[int], weights: Sequence[float], seed: int = 0, offset: int = 0) -> None:
        super().__init__(sum(examples), seed, offset)
        self.shares = shares_of(weights)
        self._starts = [sum(examples[:source]) for source in range(len(examples))]
        self._own = [Order(count, stream(seed, "source", source)) for source, count in enumerate(examples)]
        self._block: tuple[int, np.ndarray, np.ndarray] = (-1, np.array([]), np.array([]))

    def at(self, position: int) -> int:
        block, place = divmod(position + self.offset, BLOCK)
        if self._block[0] != block:
            self._block = (block, *self._of_block(block))
        source = int(self._block[1][place])
        before = block * self.shares[source] + int(self._block[2][place])
        return self._starts[source] + self._own[source].at(before)

    def source_at(self, position: int) -> int:
        """Which source is read at this position of the run."""
        number = self.at(position)
        return max(source for source, start in enumerate(self._starts) if start <= number)

    def _of_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source at each place, and how often it has come before in this block: each source's turns are spread evenly, with a draw for
        each."""
        draw = np.random.default_rng((self.seed, 5, block))
        sources = np.repeat(np.arange(len(self.shares)), self.shares)
        turns = np.concatenate([np.arange(share) for share in self.shares])
        moments = (turns + draw.random(BLOCK)) / np.array(self.shares)[sources]
        order = np.argsort(moments, kind="stable")
        return sources[order], turns[order]


def shares_of(weights: Sequence[float]) -> list[int]:
    """Of a block, how many places each source has: thousandths that add up, none of them zero."""
    exact = [weight / sum(weights) * (BLOCK - len(weights)) for weight in weights]
    whole = [math.floor(share) + 1 for share in exact]
    nearest = [weight / sum(weights) * BLOCK for weight in weights]
    while sum(whole) < BLOCK:
        whole[max(range(len(whole)), key=lambda source: nearest[source] - whole[source])] += 1
    return whole


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
