"""Contrastive divergence on a machine that grows and shrinks while it learns (arXiv:1502.02476, section 4).

The update of one mini-batch runs chains of k Gibbs steps, from the data (CD) or from their last states (PCD).
It takes the difference of the gradients of the two mean free energies, an AdaGrad step, and a proximal step
for L1. Then the last unit is removed if it is exactly zero. A zero unit is appended if data or chains reached
the open end. A zero unit changes no free energy, and its first step is in the next update.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meristem.adaptive.rbm.draws import Draws
from meristem.adaptive.rbm.machine import Gradients, Machine
from meristem.adaptive.rbm.order import Infinite, Order
from meristem.adaptive.rbm.visible import Visible

EPSILON = 1e-6  # in AdaGrad's square root
BLOCK = 32_000  # numbers; from 32,768 on, torch divides a step among its threads (see compiled.py)


@dataclass(frozen=True)
class Options:
    """The options of training.

    Args:
        learning_rate: the learning rate of AdaGrad.
        gibbs_steps: k.
        persistent: chains continue from the last update (PCD) instead of starting at the data (CD).
        l1, l2: the penalties on the weights, and of L1 on the hidden biases. L1 is applied by a proximal
            step, so that zeros are exact.
        generative_weight: the factor of the contrastive gradient. It is 1 unless labels have a gradient of
            their own.
        max_components: the number of units at which an infinite machine stops growing.
    """

    learning_rate: float = 0.03
    gibbs_steps: int = 10
    persistent: bool = True
    l1: float = 0.0
    l2: float = 0.0
    generative_weight: float = 1.0
    max_components: int = 20000


def _joined(*rows: Tensor) -> Tensor:
    """Rows, concatenated. On a CPU NumPy does it in one thread."""
    if rows[0].device.type != "cpu":
        return torch.cat(rows)
    return torch.from_numpy(np.concatenate([part.numpy() for part in rows]))


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of rows of tensors of one shape. On a CPU a block fits into the cache of a core. Elsewhere there
    is one block.
    """
    first = tensors[0]
    rows = len(first) if first.device.type != "cpu" else max(1, BLOCK * len(first) // max(first.numel(), 1))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


class Learner:
    """A machine in training. Its parameters and AdaGrad's sums are in buffers that grow by doubling.

    Args:
        weights: the first W (hidden units, visible units).
        visible_bias: the first c (visible units,).
        particles: the number of chains that PCD keeps.
    """

    def __init__(
        self,
        weights: Tensor,
        visible_bias: Tensor,
        order: Order,
        visible: Visible,
        options: Options,
        generator: torch.Generator,
        particles: int,
    ):
        self.order, self.visible, self.options, self.generator = order, visible, options, generator
        self.num_hidden = len(weights)
        self._weights, self._weight_sum = weights.clone(), torch.zeros_like(weights)
        self._bias, self._bias_sum = weights.new_zeros(len(weights)), weights.new_zeros(len(weights))
        self.visible_bias, self._visible_sum = visible_bias.clone(), torch.zeros_like(visible_bias)
        start = torch.zeros(particles, len(visible_bias), dtype=weights.dtype, device=weights.device)
        self.particles = visible.sample(start, visible_bias, Draws(generator))

    @property
    def machine(self) -> Machine:
        """The present machine. It is a view that the next update changes."""
        n = self.num_hidden
        return Machine(self._weights[:n], self._bias[:n], self.visible_bias, self.order, self.visible)

    def update(self, v: Tensor, more: Gradients | None = None) -> None:
        """Learn from one mini-batch (n, visible units). `more` is added to the contrastive gradient (for a
        classifier).
        """
        options, machine = self.options, self.machine
        chain = self.particles if options.persistent else v
        chain = machine.gibbs(chain, options.gibbs_steps, self.generator)
        if options.persistent:
            self.particles = chain
        shares = torch.cat([v.new_full((len(v),), 1 / len(v)), v.new_full((len(chain),), -1 / len(chain))])
        contrast = machine.gradients(_joined(v, chain), shares)
        reached = self._end_is_reached(contrast)
        self._descend(contrast, more)
        self._shrink()
        if reached and self.num_hidden < options.max_components:
            self.append()

    def _end_is_reached(self, gradients: Gradients) -> bool:
        """Whether a draw of z for any row falls into the open end."""
        open_end = gradients.last_survival
        if not isinstance(self.order, Infinite) or open_end is None:
            return False
        return bool(Draws(self.generator).ones(open_end).any())

    def _descend(self, contrast: Gradients, more: Gradients | None) -> None:
        n, options = self.num_hidden, self.options
        for value, total, name, penalised in (
            (self._weights[:n], self._weight_sum[:n], "weights", True),
            (self._bias[:n], self._bias_sum[:n], "hidden_bias", True),
            (self.visible_bias, self._visible_sum, "visible_bias", False),
        ):
            gradient = getattr(contrast, name)
            if options.generative_weight != 1:
                gradient.mul_(options.generative_weight)
            if more is not None:
                gradient += getattr(more, name)
            if options.l2 and name == "weights":
                gradient.add_(value, alpha=2 * options.l2)
            for block, squares, slope in _blocks(value, total, gradient):
                squares.addcmul_(slope, slope)
                scale = (squares + EPSILON).rsqrt_()
                block.addcmul_(slope, scale, value=-options.learning_rate)
                if options.l1 and penalised:
                    threshold = scale.mul_(options.learning_rate * options.l1)
                    block.copy_(torch.sign(block) * (block.abs() - threshold).clamp_(min=0))

    def begin_with(self, machine: Machine) -> None:
        """Load the parameters of a machine. Sums and chains begin again."""
        self._weights, self._bias = machine.weights.clone(), machine.hidden_bias.clone()
        self._weight_sum, self._bias_sum = torch.zeros_like(self._weights), torch.zeros_like(self._bias)
        self.visible_bias = machine.visible_bias.clone()
        self.num_hidden = machine.num_hidden

    def append(self) -> None:
        """Append a unit of zeros. It changes no free energy in an infinite machine."""
        n = self.num_hidden
        if n == len(self._bias):
            for name in ("_weights", "_weight_sum", "_bias", "_bias_sum"):
                old = getattr(self, name)
                setattr(self, name, torch.cat([old, torch.zeros_like(old)]))
        for buffer in (self._weights, self._weight_sum, self._bias, self._bias_sum):
            buffer[n] = 0
        self.num_hidden = n + 1

    def _shrink(self) -> None:
        last = self.num_hidden - 1
        if not isinstance(self.order, Infinite) or last == 0:
            return
        if not self._bias[last] and not self._weights[last].any():
            self.num_hidden = last

    def regroup(self, first: int) -> None:
        """Put the first `first` units, with AdaGrad's sums, into a random order (RP-iRBM)."""
        order = torch.randperm(first, generator=self.generator, device=self._bias.device)
        for buffer in (self._weights, self._weight_sum, self._bias, self._bias_sum):
            buffer[:first] = buffer[:first][order]

    def state(self) -> dict[str, Tensor]:
        """Everything that a training needs to be resumed, by name."""
        n = self.num_hidden
        return {
            "weights": self._weights[:n].clone(),
            "weight_sum": self._weight_sum[:n].clone(),
            "bias": self._bias[:n].clone(),
            "bias_sum": self._bias_sum[:n].clone(),
            "visible_bias": self.visible_bias.clone(),
            "visible_sum": self._visible_sum.clone(),
            "particles": self.particles.clone(),
            "generator": self.generator.get_state(),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from the result of `state()`."""
        like = self.visible_bias
        moved = {name: t.to(like.device) for name, t in state.items() if name != "generator"}
        self._weights, self._weight_sum = moved["weights"].clone(), moved["weight_sum"].clone()
        self._bias, self._bias_sum = moved["bias"].clone(), moved["bias_sum"].clone()
        self.visible_bias, self._visible_sum = moved["visible_bias"].clone(), moved["visible_sum"].clone()
        self.particles = moved["particles"].clone()
        self.num_hidden = len(self._bias)
        self.generator.set_state(state["generator"].cpu())
