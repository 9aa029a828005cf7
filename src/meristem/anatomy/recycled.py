"""Memory for large tensors, used again once a tensor is gone.

Pages that the system hands out have to be cleared first, and a virtual machine may have to ask its host
for them.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 22  # bytes, below which malloc keeps memory by itself
HELD = 1 << 29  # bytes that are kept at most, in use or not
ALIGNED = 64


class Recycler:
    """Blocks of memory that have been used before; no more than `HELD` bytes, those used last."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU without values, as `torch.empty`. Its memory is free again when it and all its
        views are gone.
        """
        size = math.prod(shape) * dtype.itemsize
        if size < LARGE:
            return torch.empty(tuple(shape), dtype=dtype)
        with self._lock:
            block = self._take(size)
            offset = -block.ctypes.data % ALIGNED
            return torch.from_numpy(block[offset : offset + size]).view(dtype).view(tuple(shape))

    def _take(self, size: int) -> np.ndarray:
        for place in range(len(self._blocks)):
            if len(self._blocks[place]) == size + ALIGNED and sys.getrefcount(self._blocks[place]) == _UNUSED:
                self._blocks.append(self._blocks.pop(place))
                return self._blocks[-1]
        block = np.empty(size + ALIGNED, dtype=np.uint8)
        self._blocks.append(block)
        while len(self._blocks) > 1 and sum(map(len, self._blocks)) > HELD:
            del self._blocks[0]  # gone as soon as nothing uses it
        return block


_UNUSED = 2  # references to a block that only the list has, while they are counted
_RECYCLER = Recycler()
empty = _RECYCLER.empty
