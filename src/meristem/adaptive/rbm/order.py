"""Which hidden units exist: all (RBM), those up to a number z (ordered RBM), or those up to a z without a
limit (iRBM).

`x` is the input of the hidden units, W v + b (n, hidden units), and `bias` is b. The ordered machines have a
price beta_i for every unit up to z (Cote & Larochelle 2016, arXiv:1502.02476, eq. 4), so that z follows p(z |
v) = softmax_z(t_z), t_z = sum_{i <= z} softplus(x_i) - beta_i. In the infinite machine, units after the last
one are zero and add (1 - beta) ln 2 each. This is a geometric series of ratio r = 2^(1 - beta), which
converges only for beta > 1. Its sum -ln(1 - r) is added to the last entry of t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from meristem.adaptive.rbm.draws import Draws
from meristem.errors import MeristemError

Penalty = Literal["bias", "constant"]


class Order(Protocol):
    """Which hidden units exist."""

    def log_sum(self, x: Tensor, bias: Tensor) -> Tensor:
        """ln of the sum over all hidden states of exp(-their part of the energy) (n,)."""
        ...

    def survival(self, x: Tensor, bias: Tensor) -> Tensor:
        """P(unit i exists | v) (n, hidden units)."""
        ...

    def offsets(self, bias: Tensor) -> Tensor | None:
        """The terms, besides softplus(x), that each unit up to z adds to ln p(z | v) (hidden units,), or None
        if there is no z.
        """
        ...

    def sample(self, x: Tensor, bias: Tensor, draws: Draws) -> Tensor:
        """A draw of h given v (n, hidden units)."""
        ...

    def bias_slope(self, bias: Tensor) -> Tensor:
        """The derivative of a unit's price with respect to its bias (hidden units,)."""
        ...

    def log_prior(self, bias: Tensor) -> Tensor:
        """ln of the sum of exp(-prices) over the z for which the last unit that is 1 can be j, j = 0 ..
        hidden units.
        """
        ...


@dataclass(frozen=True)
class Unordered:
    """The plain RBM: every unit exists."""

    def log_sum(self, x: Tensor, bias: Tensor) -> Tensor:
        return F.softplus(x).sum(-1)

    def survival(self, x: Tensor, bias: Tensor) -> Tensor:
        return torch.ones_like(x)

    def offsets(self, bias: Tensor) -> Tensor | None:
        return None

    def sample(self, x: Tensor, bias: Tensor, draws: Draws) -> Tensor:
        return draws.ones(torch.sigmoid(x))

    def bias_slope(self, bias: Tensor) -> Tensor:
        return torch.zeros_like(bias)

    def log_prior(self, bias: Tensor) -> Tensor:
        return bias.new_zeros(len(bias) + 1)


@dataclass(frozen=True)
class Ordered:
    """The ordered RBM: units 1 .. z exist, and z is at most the number of units.

    Args:
        beta: the price of a unit, relative to the contribution of its bias alone.
        penalty: "bias": beta_i = beta softplus(b_i), as published. "constant": beta ln 2 for every unit
            (RP-iRBM).
    """

    beta: float = 1.01
    penalty: Penalty = "bias"

    def prices(self, bias: Tensor) -> Tensor:
        """beta_i (hidden units,)."""
        return self.beta * (F.softplus(bias) if self.penalty == "bias" else torch.full_like(bias, math.log(2)))

    @property
    def log_tail(self) -> float:
        """The addition to the last entry of t for the units after it."""
        return 0.0

    def offsets(self, bias: Tensor) -> Tensor:
        offsets = -self.prices(bias)
        offsets[-1] += self.log_tail
        return offsets

    def scores(self, x: Tensor, bias: Tensor) -> Tensor:
        """t_z for z = 1 .. hidden units, where p(z | v) = softmax(t) (n, hidden units)."""
        gains = self.offsets(bias) - F.logsigmoid(-x)  # softplus(x) is -logsigmoid(-x), which takes half the time
        return torch.cumsum(gains, -1)

    def log_sum(self, x: Tensor, bias: Tensor) -> Tensor:
        return torch.logsumexp(self.scores(x, bias), -1)

    def survival(self, x: Tensor, bias: Tensor) -> Tensor:
        posterior = torch.softmax(self.scores(x, bias), -1)
        return (1 - torch.cumsum(posterior, -1) + posterior).clamp_(0, 1)

    def sample(self, x: Tensor, bias: Tensor, draws: Draws) -> Tensor:
        reached = torch.softmax(self.scores(x, bias), -1).cumsum_(-1)  # P(Z <= i)
        h = draws.ones(torch.sigmoid(x))
        h[:, 1:] *= reached[:, :-1] <= draws.uniform((len(x), 1))
        return h

    def bias_slope(self, bias: Tensor) -> Tensor:
        return self.beta * torch.sigmoid(bias) if self.penalty == "bias" else torch.zeros_like(bias)

    def log_prior(self, bias: Tensor) -> Tensor:
        reached = torch.cumsum(self.offsets(bias), 0)  # z = 1 .. num_hidden
        at_least = torch.flip(torch.logcumsumexp(torch.flip(reached, [0]), 0), [0])
        return torch.cat([at_least[:1], at_least])


@dataclass(frozen=True)
class Infinite(Ordered):
    """The infinite RBM: z has no upper limit, and units after the last one are zero.

    Raises:
        MeristemError: if beta is not above 1, because the sum over z then diverges.
    """

    def __post_init__(self) -> None:
        if not self.beta > 1:
            raise MeristemError(
                f"the infinite RBM's sum over units exists only for beta > 1, got {self.beta}; 1.01 would work"
            )

    @property
    def log_tail(self) -> float:
        return -math.log(-math.expm1((1 - self.beta) * math.log(2)))
