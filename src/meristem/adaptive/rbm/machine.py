"""A Boltzmann machine: weights, biases, the kinds of its units, and the closed forms that follow from its
energy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from meristem.adaptive.rbm.draws import Draws
from meristem.adaptive.rbm.order import Order, Ordered
from meristem.adaptive.rbm.visible import BinaryVisible, Visible

HAS_NUMBA = find_spec("numba") is not None


@dataclass(frozen=True)
class Gradients:
    """Derivatives of a weighted sum of free energies with respect to the parameters, in the same shapes.

    `last_survival` is set by `Machine.gradients`: P(the last unit exists | v) of each row (n,).
    """

    weights: Tensor
    hidden_bias: Tensor
    visible_bias: Tensor
    last_survival: Tensor | None = None


@dataclass(frozen=True)
class Machine:
    """The energy E(v, h, z) = energy(v, c) - sum_{i <= z} [h_i (W_i . v + b_i) - beta_i] (arXiv:1502.02476,
    eqs. 1, 4).

    Args:
        weights: W (hidden units, visible units), a row for each filter.
        hidden_bias: b (hidden units,).
        visible_bias: c (visible units,).
        order: the rule by which hidden units exist (`Unordered`, `Ordered`, `Infinite`).
        visible: the kind of the visible units.
    """

    weights: Tensor
    hidden_bias: Tensor
    visible_bias: Tensor
    order: Order
    visible: Visible

    @property
    def num_hidden(self) -> int:
        return len(self.hidden_bias)

    def received(self, v: Tensor) -> Tensor:
        """The inputs of the hidden units, W v + b (n, hidden units)."""
        return torch.addmm(self.hidden_bias, self.visible.scaled(v), self.weights.T)

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -ln sum_{h, z} exp(-E(v, h, z)) (n,)."""
        return self.visible.energy(v, self.visible_bias) - self.order.log_sum(self.received(v), self.hidden_bias)

    def hidden_free_energy(self, h: Tensor) -> Tensor:
        """-ln sum_{v, z} exp(-E(v, h, z)) for binary hidden states h (n, hidden units) -> (n,)."""
        place = torch.arange(1, self.num_hidden + 1, device=h.device)
        last = (h * place).amax(-1).long()
        integral = self.visible.log_integral(h @ self.weights, self.visible_bias)
        return -(h @ self.hidden_bias + self.order.log_prior(self.hidden_bias)[last] + integral)

    def first(self, num_hidden: int) -> Machine:
        """The machine of the first `num_hidden` hidden units."""
        return replace(self, weights=self.weights[:num_hidden], hidden_bias=self.hidden_bias[:num_hidden])

    def sample_hidden(self, v: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of h given v (n, hidden units)."""
        return self.order.sample(self.received(v), self.hidden_bias, Draws(generator))

    def posterior(self, v: Tensor) -> Tensor:
        """p(z | v) for z = 1 .. hidden units (n, hidden units). In the infinite machine, the last entry is
        p(z >= l | v).

        Raises:
            TypeError: for a plain RBM, which has no z.
        """
        if not isinstance(self.order, Ordered):
            raise TypeError("a plain RBM has no number of units z")
        return torch.softmax(self.order.scores(self.received(v), self.hidden_bias), -1)

    def hidden_mean(self, v: Tensor) -> Tensor:
        """p(h_i = 1 | v) = P(Z >= i | v) sigmoid(W_i v + b_i) (n, hidden units)."""
        x = self.received(v)
        return self.order.survival(x, self.hidden_bias) * torch.sigmoid(x)

    def gibbs(self, v: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """Run `steps` rounds of z and h given v, then v given h (n, visible units)."""
        draws = Draws(generator)
        if steps > 1 and self._can_be_compiled:
            from meristem.adaptive.rbm import compiled  # numba takes a second to import

            offsets = self.order.offsets(self.hidden_bias)
            return compiled.gibbs(v, self.weights, self.hidden_bias, self.visible_bias, offsets, steps, draws)
        for _ in range(steps):
            h = self.order.sample(self.received(v), self.hidden_bias, draws)
            v = self.visible.sample(h @ self.weights, self.visible_bias, draws)
        return v

    @property
    def _can_be_compiled(self) -> bool:
        """Whether chains may run compiled: binary units in float32 on a CPU, with numba installed."""
        place = (self.weights.device.type, self.weights.dtype)
        return HAS_NUMBA and isinstance(self.visible, BinaryVisible) and place == ("cpu", torch.float32)

    def gradients(self, v: Tensor, shares: Tensor | None = None) -> Gradients:
        """Derivatives of the sum of shares F(v), in closed form (section 5.2 of `infinite_rbm.md`). A test
        compares them with autograd.

        Args:
            v: the rows (n, visible units).
            shares: a factor for each row (n,), which may be negative. 1 / n by default.
        """
        if shares is None:
            shares = v.new_full((len(v),), 1 / len(v))
        if self._can_be_compiled:
            from meristem.adaptive.rbm import compiled

            offsets = self.order.offsets(self.hidden_bias)
            sums = compiled.gradients(v, -shares, self.weights, self.hidden_bias, offsets)
            weights, mean, survival, by_visible, last = sums
            return Gradients(weights, mean - survival * self.order.bias_slope(self.hidden_bias), by_visible, last)
        x = self.received(v)
        survival = self.order.survival(x, self.hidden_bias)
        slope = (shares @ survival) * self.order.bias_slope(self.hidden_bias)
        mean = torch.sigmoid(x).mul_(survival).mul_(-shares[:, None])
        return Gradients(
            mean.T @ self.visible.scaled(v),
            slope + mean.sum(0),
            shares @ self.visible.bias_gradient(v, self.visible_bias),
            survival[:, -1],
        )

    def to(self, dtype: torch.dtype) -> Machine:
        """The same machine in another precision."""
        weights, hidden_bias, visible_bias = (t.to(dtype) for t in (self.weights, self.hidden_bias, self.visible_bias))
        return replace(self, weights=weights, hidden_bias=hidden_bias, visible_bias=visible_bias)
