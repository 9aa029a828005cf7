"""Random numbers for Gibbs chains. Chains spend as much time on them as on their products, and torch's generator is slow on a CPU."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Draws that follow from a torch generator: from it itself on a GPU, on a CPU from NumPy's SFC64, seeded by it.

    Args:
        generator: it moves on by one number, or, on a GPU, with every draw.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._fast: np.random.SFC64 | None = None
        if generator.device.type == "cpu":
            self._fast = np.random.SFC64(int(torch.randint(2**62, (), generator=generator)))

    def uniform(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Uniform multiples of 2^-24 in [0, 1), as torch.rand makes them, float32."""
        if self._fast is None:
            return torch.rand(shape, generator=self.generator, device=self.generator.device)
        count = math.prod(shape)
        pairs = torch.from_numpy(self._fast.random_raw((count + 1) // 2).view(np.int32))
        signed = pairs[:count].view(shape) >> 8  # the upper 24 bits, from -2^23
        return signed.to(torch.float32).mul_(2.0**-24).add_(0.5)

    def ones(self, probability: Tensor) -> Tensor:
        """Zeros, and ones with these probabilities (any shape), of the same type."""
        return torch.lt(self.uniform(probability.shape), probability, out=torch.empty_like(probability))

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape of `like`."""
        return torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)

    def classes(self, scores: Tensor) -> Tensor:
        """One class for each row, of probabilities softmax(scores) (n, classes) -> (n,)."""
        return torch.multinomial(torch.softmax(scores, -1), 1, generator=self.generator)[:, 0]
