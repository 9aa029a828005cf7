"""Pieces of a corpus, each of at most one sequence: where the text is cut and, for several corpora, from
which of them a piece comes.
"""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from meristem.data.order import BLOCK, Order, WeightedOrder, shares_of
from meristem.errors import MeristemError

RELEASE = 16  # reads after which a memory-mapped array frees the pages it has touched, up to 2 MB each


class Windows(ABC):
    """Numbered pieces of tokens."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def tokens(self, number: int) -> np.ndarray:
        """The tokens of a piece, int64, at most one sequence long."""

    @property
    def once_through(self) -> int:
        """How many are read until each has been read."""
        return len(self)

    def order(self, seed: int, offset: int) -> Order:
        """The order in which a run reads the pieces."""
        return Order(len(self), seed, offset)


class _OfArray(Windows):
    """Read from an array, which may be memory-mapped. Pages that were read stay in the cache of the system,
    not in this process.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self._mapped, self._reads = getattr(array, "_mmap", None), 0

    def _between(self, start: int, end: int) -> np.ndarray:
        self._reads += 1
        if self._mapped is not None and self._reads % RELEASE == 0:
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return self.array[start:end].astype(np.int64)


class Consecutive(_OfArray):
    """One piece after another, all of the same length, wherever documents begin.

    Raises:
        MeristemError: if there is less than one piece.
    """

    def __init__(self, array: np.ndarray, sequence_length: int) -> None:
        super().__init__(array)
        if len(array) < sequence_length:
            raise MeristemError(f"the corpus has {len(array)} tokens, fewer than one sequence of {sequence_length}")
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return len(self.array) // self.sequence_length

    def tokens(self, number: int) -> np.ndarray:
        start = number * self.sequence_length
        return self._between(start, start + self.sequence_length)


class WholeDocuments(_OfArray):
    """Documents packed so that one that fits into a sequence is not cut (see `data.packing`).

    Args:
        starts: the start of every piece in the array, one sequence after another.
        ends: the end of every piece.
        firsts: the first piece of each sequence, and the number of pieces.
    """

    def __init__(self, array: np.ndarray, starts: np.ndarray, ends: np.ndarray, firsts: np.ndarray) -> None:
        super().__init__(array)
        self.starts, self.ends, self.firsts = starts, ends, firsts

    def __len__(self) -> int:
        return len(self.firsts) - 1

    def tokens(self, number: int) -> np.ndarray:
        pieces = range(int(self.firsts[number]), int(self.firsts[number + 1]))
        return np.concatenate([self._between(int(self.starts[p]), int(self.ends[p])) for p in pieces])


class Weighted(Windows):
    """The pieces of several corpora, in shares that do not depend on their sizes.

    Args:
        parts: the pieces of each corpus.
        weights: the weight of each corpus, above zero. Only their ratios matter.
    """

    def __init__(self, parts: Sequence[Windows], weights: Sequence[float]) -> None:
        self.parts, self.weights = parts, weights
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def once_through(self) -> int:
        """The smaller sources of large weight are read again meanwhile."""
        shares = shares_of(self.weights)
        return max(math.ceil(len(part) * BLOCK / share) for part, share in zip(self.parts, shares, strict=True))

    def tokens(self, number: int) -> np.ndarray:
        part = int(np.searchsorted(self._ends, number, side="right"))
        return self.parts[part].tokens(number - int(self._ends[part]) + len(self.parts[part]))

    def order(self, seed: int, offset: int) -> WeightedOrder:
        return WeightedOrder([len(part) for part in self.parts], self.weights, seed, offset)
