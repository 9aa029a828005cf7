"""Random numbers for Gibbs chains. They take as much time as the products of a chain, and torch's generator
is slow on a CPU.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Random numbers that follow from a torch generator. A GPU uses the generator itself, a CPU uses NumPy's
    SFC64 seeded by it.

    Args:
        generator: the generator. On a CPU it advances by one number, on a GPU with every draw.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._fast: np.random.SFC64 | None = None
        if generator.device.type == "cpu":
            self._fast = np.random.SFC64(int(torch.randint(2**62, (), generator=generator)))

    def uniform(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Uniform numbers in [0, 1] of the given shape, float32."""
        if self._fast is None:
            return torch.rand(shape, generator=self.generator, device=self.generator.device)
        return self.integers(shape).to(torch.float32).mul_(2.0**-32).add_(0.5)

    def ones(self, probability: Tensor) -> Tensor:
        """Ones with the given probabilities (any shape) and otherwise zeros, of the same shape and type."""
        ones = torch.empty_like(probability)
        if self._fast is None:
            return torch.lt(self.uniform(probability.shape), probability, out=ones)
        threshold = torch.add(torch.tensor(-(2.0**31), dtype=probability.dtype), probability, alpha=2.0**32)
        return torch.lt(self.integers(probability.shape), threshold, out=ones)

    def integers(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Uniform integers from -2^31 to 2^31 - 1, int32, on a CPU only."""
        assert self._fast is not None
        count = math.prod(shape)
        pairs = self._fast.random_raw((count + 1) // 2).view(np.int32)
        return torch.from_numpy(pairs[:count]).view(shape)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape of `like`."""
        return torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)

    def classes(self, scores: Tensor) -> Tensor:
        """One class for each row, with probabilities softmax(scores) (n, classes) -> (n,)."""
        return torch.multinomial(torch.softmax(scores, -1), 1, generator=self.generator)[:, 0]
