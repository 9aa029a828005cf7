"""The candidates of one round are trained together: layer s of all blocks that have one is one tensor, and
one step updates all.

The gradients are written out, and a test compares them with those of autograd. With f = offset + h w and the
derivative of the loss with respect to f, the chain rule through layers of rectified units takes two batched
products for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from meristem.adaptive.adanet.losses import Loss


class Stack:
    """Blocks of one width, the deepest first, and their output weights. All parameters are views of one
    vector.

    Args:
        depths: the depth of each block, in falling order.
        num_features: n_0.
        width: the units in each layer.
        earlier: the number of units of earlier blocks that each layer from the second on reads.
        outputs: the number of outputs of the network.
        seeds: the seed of each block's first weights.

    Attributes:
        layers: a tensor for each layer (blocks that have it, inputs, width). The inputs from its own block
            come first.
        weights: the output weights (blocks, width, outputs).
    """

    def __init__(
        self,
        depths: Sequence[int],
        num_features: int,
        width: int,
        earlier: Sequence[int],
        outputs: int,
        seeds: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        self.depths, self.width = list(depths), width
        inputs = [num_features, *(width + read for read in earlier[: depths[0] - 1])]
        self.counts = [sum(depth > layer for depth in depths) for layer in range(depths[0])] + [0]
        shapes = [(count, n, width) for count, n in zip(self.counts, inputs, strict=False)]
        shapes.append((len(depths), width, outputs))
        self.vector = torch.empty(sum(map(math.prod, shapes)), dtype=dtype, device=device)
        self.slopes = torch.empty_like(self.vector)
        *self.layers, self.weights = self._views(self.vector, shapes)
        *self.layer_slopes, self.weight_slopes = self._views(self.slopes, shapes)
        for block, (depth, seed) in enumerate(zip(depths, seeds, strict=True)):
            draw = partial(_drawn, generator=torch.Generator().manual_seed(seed))
            for layer in self.layers[:depth]:
                bound = layer.shape[1] ** -0.5
                layer[block] = (2 * draw(torch.rand, layer) - 1) * bound
            self.weights[block] = draw(torch.randn, self.weights) / width

    @staticmethod
    def _views(vector: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        parts = vector.split([math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def activities(self, features: Tensor, earlier: Sequence[Tensor]) -> list[Tensor]:
        """The units of each layer (blocks that have it, n, width).

        Args:
            features: the features (n, n_0).
            earlier: the units of earlier blocks that each layer from the second on reads.
        """
        found = [torch.relu_(features @ self.layers[0])]
        for layer, count, read in zip(self.layers[1:], self.counts[1:], earlier, strict=False):
            total = torch.bmm(found[-1][:count], layer[:, : self.width])
            if read.shape[1]:
                total += read @ layer[:, self.width :]
            found.append(torch.relu_(total))
        return found

    def last(self, activities: Sequence[Tensor]) -> Tensor:
        """The units of each block that the output reads (blocks, n, width)."""
        if len(activities) == 1:
            return activities[0]
        layers = range(len(activities) - 1, -1, -1)
        return torch.cat([activities[layer][self.counts[layer + 1] :] for layer in layers])

    def outputs(self, features: Tensor, earlier: Sequence[Tensor], offset: Tensor) -> Tensor:
        """The outputs f + w h with each block (blocks, n, outputs)."""
        return torch.baddbmm(
            offset.expand(len(self.depths), -1, -1), self.last(self.activities(features, earlier)), self.weights
        )

    def differentiate(
        self,
        features: Tensor,
        earlier: Sequence[Tensor],
        offset: Tensor,
        targets: Tensor,
        shares: Tensor,
        loss: Loss,
        price: Tensor,
    ) -> None:
        """Fill `slopes` with the derivative of the sum over blocks of: sum of shares loss(f + w h) + price
        |w|_1.

        Args:
            offset, targets: the outputs of the network and the targets (n, outputs).
            shares: the weights of the rows (n,).
            price: the price of each block (blocks, 1, 1).
        """
        activities = self.activities(features, earlier)
        last = self.last(activities)
        outputs = torch.baddbmm(offset.expand(len(last), -1, -1), last, self.weights)
        pull = loss.slope(outputs, targets) * shares[:, None]
        torch.bmm(last.mT, pull, out=self.weight_slopes)
        self.weight_slopes += price * self.weights.sign()
        from_output = pull @ self.weights.mT
        above: Tensor | None = None
        for number in range(len(activities) - 1, -1, -1):
            own = from_output[self.counts[number + 1] : self.counts[number]]
            slope = own if above is None else torch.cat([above, own])
            slope = slope.mul_(activities[number] > 0) if above is not None else slope * (activities[number] > 0)
            wanted = self.layer_slopes[number]
            if number == 0:
                torch.matmul(features.mT, slope, out=wanted)
                break
            wanted[:, : self.width] = torch.bmm(activities[number - 1][: len(slope)].mT, slope)
            if earlier[number - 1].shape[1]:
                wanted[:, self.width :] = earlier[number - 1].mT @ slope
            above = torch.bmm(slope, self.layers[number][:, : self.width].mT)

    def project(self, max_norm: float, p: float) -> None:
        """Scale the weights of units whose p-norm exceeds `max_norm` down to that norm."""
        for layer in self.layers:
            norms = torch.linalg.vector_norm(layer, ord=p, dim=1, keepdim=True)
            layer.mul_((max_norm / norms.clamp(min=1e-12)).clamp(max=1.0))

    def parts(self, block: int) -> list[Tensor]:
        """The parameters of one block as views: its layers (inputs, width), then its output weights (width,
        outputs).
        """
        return [*(layer[block] for layer in self.layers[: self.depths[block]]), self.weights[block]]


def _drawn(kind: Callable[..., Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers in the shape of one block's part of a tensor. They are drawn on the CPU, so they are the
    same on every device.
    """
    return kind(like.shape[1:], generator=generator, dtype=torch.float64, device="cpu")


class Adam:
    """Adam (Kingma & Ba 2015) on one vector, as `torch.optim.Adam` with its defaults. `momentum=False` gives
    plain gradient descent.
    """

    def __init__(self, vector: Tensor, learning_rate: float, momentum: bool = True):
        self.vector, self.learning_rate, self.momentum, self.steps = vector, learning_rate, momentum, 0
        self.mean, self.square = torch.zeros_like(vector), torch.zeros_like(vector)

    def step(self, slopes: Tensor) -> None:
        """One step along `slopes`, the vector's gradient."""
        if not self.momentum:
            self.vector.add_(slopes, alpha=-self.learning_rate)
            return
        self.steps += 1
        self.mean.lerp_(slopes, 0.1)
        self.square.mul_(0.999).addcmul_(slopes, slopes, value=0.001)
        root = self.square.sqrt().div_(math.sqrt(1 - 0.999**self.steps)).add_(1e-8)
        self.vector.addcdiv_(self.mean, root, value=-self.learning_rate / (1 - 0.9**self.steps))
