"""Fixed-length training sequences of a corpus."""

from __future__ import annotations

import mmap

import numpy as np
import torch

from meristem.data.encoding import IGNORED
from meristem.data.order import Order, Ordered
from meristem.errors import MeristemError

RELEASE = 512  # reads after which a memory-mapped array lets go of the pages it has touched


class Sequences(Ordered):
    """Non-overlapping windows of a token array, shuffled; longer than the data, it goes round again in a new order.

    Args:
        tokens: 1-D array.
        sequence_length: tokens in each window.
        count: how many windows this run reads.
        seed, offset: see `Order`.
    """

    def __init__(self, tokens: np.ndarray, sequence_length: int, count: int, seed: int = 0, offset: int = 0) -> None:
        windows = len(tokens) // sequence_length
        if windows == 0:
            raise MeristemError(f"the corpus has {len(tokens)} tokens, less than one sequence of {sequence_length}")
        super().__init__(count, Order(windows, seed, offset))
        self.tokens, self.sequence_length = tokens, sequence_length
        self._mapped, self._reads = getattr(tokens, "_mmap", None), 0

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        self._reads += 1
        if self._mapped is not None and self._reads % RELEASE == 0:
            self._mapped.madvise(
                mmap.MADV_DONTNEED
            )  # pages that were read stay in the system's cache, not in this process
        start = self.order.at(position) * self.sequence_length
        window = torch.from_numpy(self.tokens[start : start + self.sequence_length].astype(np.int64))
        labels = window.clone()
        labels[0] = IGNORED  # nothing stands before it; Trainer counts it for some models (GPT-2) unless it is told
        return {"input_ids": window, "labels": labels}
