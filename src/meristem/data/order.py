"""The order in which a run reads its data. It depends only on (seed, position in the run)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from meristem.streams import stream

ROUNDS = 6
WORD = (1 << 64) - 1


class Order:
    """Rounds through the data, each shuffled in a new way, without a list of the examples.

    The order is a keyed permutation of 0..examples - 1: a Feistel network on the next power of four, applied
    again until the number is below `examples` (Black and Rogaway 2002).

    Args:
        examples: how many examples there are.
        seed: the seed of the order.
        offset: how many examples earlier stages have read. They are not read again.
    """

    def __init__(self, examples: int, seed: int = 0, offset: int = 0) -> None:
        self.examples, self.seed, self.offset = examples, seed, offset
        self._half = max(1, ((examples - 1).bit_length() + 1) // 2)
        self._keys: tuple[int, list[int]] = (-1, [])

    def at(self, position: int) -> int:
        """The example at this position of the run."""
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
    """Several sources, each in its own order, in shares that hold for every part of the run. Among any `n`
    positions, a source with share `w` has about `n w`. Like `Order`, it depends only on (seed, position).

    Args:
        examples: the number of examples of each source. Examples are numbered through, those of the first
            source first.
        weights: the weight of each source, above zero. Shares are whole thousandths, and at least one.
        seed: the seed of the order (see `Order`).
        offset: how many examples earlier stages have read (see `Order`).
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
        """The source at this position of the run."""
        number = self.at(position)
        return max(source for source, start in enumerate(self._starts) if start <= number)

    def _of_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source at each place, and how often it occurred before in this block. The turns of each source
        are spread evenly, with a random shift for each.
        """
        draw = np.random.default_rng((self.seed, 5, block))
        sources = np.repeat(np.arange(len(self.shares)), self.shares)
        turns = np.concatenate([np.arange(share) for share in self.shares])
        moments = (turns + draw.random(BLOCK)) / np.array(self.shares)[sources]
        order = np.argsort(moments, kind="stable")
        return sources[order], turns[order]


def shares_of(weights: Sequence[float]) -> list[int]:
    """The number of places of each source in a block: thousandths that sum to the block, and none of them
    zero.
    """
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
    """The training examples to train on, those to tune on, and the held-out ones to evaluate on. No example
    is in two of them.

    Args:
        examples: the number of training examples.
        held_out: the number of held-out examples.
        fraction: the share of the remaining training examples that is used. The choice is random, and the
            same on every machine.
        eval_examples: how many held-out examples are used. All of them by default.
    """
    order = np.random.default_rng(0).permutation(examples)
    tuning = examples // TUNE_SHARE
    rest = order[: examples - tuning]
    kept = np.random.default_rng(1).permutation(held_out)[:eval_examples]
    return rest[: max(1, round(fraction * len(rest)))], order[examples - tuning :], kept


class Ordered(Dataset):
    """A data set that a run reads from its first to its last position: `count` examples in its own order."""

    def __init__(self, count: int, order: Order) -> None:
        self.count, self.order = count, order

    def __len__(self) -> int:
        return self.count
