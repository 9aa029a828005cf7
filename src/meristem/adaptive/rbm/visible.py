"""The kinds of visible units: their term of the energy, how they are drawn, and their integrals.

Every kind receives from the hidden units `field` = h W (n, visible units) and reads data as `scaled(v)`. One
energy therefore covers all kinds: E(v, h) = energy(v, c) - field . scaled(v) - h . b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from meristem.adaptive.rbm.draws import Draws
from meristem.errors import MeristemError

ROUNDING = 1e-6  # how far a value of a binary unit may lie outside [0, 1]


def in_unit_interval(x: np.ndarray) -> bool:
    """Whether all values are in [0, 1], up to rounding."""
    return bool(x.min() >= -ROUNDING and x.max() <= 1 + ROUNDING)


def check_groups(x: np.ndarray, sizes: Sequence[int]) -> None:
    """Check that the last columns of x (n, inputs) are groups of these sizes, in which each row is a
    distribution.

    Raises:
        MeristemError: if they are not.
    """
    start = x.shape[1] - sum(sizes)
    if start < 0:
        raise MeristemError(
            f"categories of {', '.join(map(str, sizes))} values need {sum(sizes)} columns, found {x.shape[1]}"
        )
    for number, size in enumerate(sizes, 1):
        group, start = x[:, start : start + size], start + size
        wrong = np.nonzero((np.abs(group.sum(1) - 1) > 1e-4) | (group < -ROUNDING).any(1))[0]
        if len(wrong):
            raise MeristemError(
                f"categorical unit {number}, row {wrong[0] + 1}: {np.round(group[wrong[0]], 4).tolist()}; exactly one of its {size} columns "
                "is 1 (or they are probabilities of sum 1): sklearn.preprocessing.OneHotEncoder gives them"
            )


def check_categories(sizes: Sequence[int] | str) -> None:
    """Check the sizes of categorical units.

    Raises:
        MeristemError: unless they are whole numbers of at least 2, or the word "auto".
    """
    if sizes != "auto" and (isinstance(sizes, str) or any(not isinstance(s, Integral) or s < 2 for s in sizes)):
        raise MeristemError(f"categories are sizes of at least 2, such as (3, 4), got {sizes!r}")


class Visible(Protocol):
    """One kind of visible units. `bias` is c (visible units,), and `field` is h W (n, visible units)."""

    def scaled(self, v: Tensor) -> Tensor:
        """The data as the weights read it."""
        ...

    def energy(self, v: Tensor, bias: Tensor) -> Tensor:
        """The energy of v alone (n,)."""
        ...

    def sample(self, field: Tensor, bias: Tensor, draws: Draws) -> Tensor:
        """A draw of v given the hidden units (n, visible units)."""
        ...

    def log_integral(self, field: Tensor, bias: Tensor) -> Tensor:
        """ln of the sum (or integral) over v of exp(-energy(v) + field . scaled(v)) (n,)."""
        ...

    def bias_gradient(self, v: Tensor, bias: Tensor) -> Tensor:
        """The derivative of the energy with respect to the bias (n, visible units)."""
        ...


@dataclass(frozen=True)
class BinaryVisible:
    """Zeros and ones (or probabilities in between) with the energy -v . c."""

    def scaled(self, v: Tensor) -> Tensor:
        return v

    def energy(self, v: Tensor, bias: Tensor) -> Tensor:
        return -(v @ bias)

    def sample(self, field: Tensor, bias: Tensor, draws: Draws) -> Tensor:
        return draws.ones(torch.sigmoid_(field + bias))

    def log_integral(self, field: Tensor, bias: Tensor) -> Tensor:
        return F.softplus(field + bias).sum(-1)

    def bias_gradient(self, v: Tensor, bias: Tensor) -> Tensor:
        return -v


@dataclass(frozen=True)
class GaussianVisible:
    """Real numbers with the energy |v - c|^2 / (2 sigma^2). The weights read v / sigma."""

    sigma: float = 1.0

    def scaled(self, v: Tensor) -> Tensor:
        return v / self.sigma

    def energy(self, v: Tensor, bias: Tensor) -> Tensor:
        return (v - bias).square().sum(-1) / (2 * self.sigma**2)

    def sample(self, field: Tensor, bias: Tensor, draws: Draws) -> Tensor:
        return bias + self.sigma * (field + draws.normal(field))

    def log_integral(self, field: Tensor, bias: Tensor) -> Tensor:
        constant = field.shape[-1] / 2 * math.log(2 * math.pi * self.sigma**2)
        return constant + field.square().sum(-1) / 2 + field @ bias / self.sigma

    def bias_gradient(self, v: Tensor, bias: Tensor) -> Tensor:
        return (bias - v) / self.sigma**2


@dataclass(frozen=True)
class LabelledVisible:
    """Units of another kind, followed by `num_labels` units of which exactly one is 1 (a class, or a
    categorical unit).
    """

    inputs: Visible
    num_labels: int

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., : -self.num_labels], x[..., -self.num_labels :]

    def scaled(self, v: Tensor) -> Tensor:
        inputs, label = self._split(v)
        return torch.cat([self.inputs.scaled(inputs), label], -1)

    def energy(self, v: Tensor, bias: Tensor) -> Tensor:
        (inputs, label), (input_bias, label_bias) = self._split(v), self._split(bias)
        return self.inputs.energy(inputs, input_bias) - label @ label_bias

    def sample(self, field: Tensor, bias: Tensor, draws: Draws) -> Tensor:
        (inputs, label), (input_bias, label_bias) = self._split(field), self._split(bias)
        one_hot = F.one_hot(draws.classes(label + label_bias), self.num_labels).to(field.dtype)
        return torch.cat([self.inputs.sample(inputs, input_bias, draws), one_hot], -1)

    def log_integral(self, field: Tensor, bias: Tensor) -> Tensor:
        (inputs, label), (input_bias, label_bias) = self._split(field), self._split(bias)
        return self.inputs.log_integral(inputs, input_bias) + torch.logsumexp(label + label_bias, -1)

    def bias_gradient(self, v: Tensor, bias: Tensor) -> Tensor:
        (inputs, label), (input_bias, _) = self._split(v), self._split(bias)
        return torch.cat([self.inputs.bias_gradient(inputs, input_bias), -label], -1)


def visible_kind(name: str, categories: Sequence[int] = (), sigma: float = 1.0) -> Visible:
    """ "binary" or "gaussian" units, followed by categorical units of the given sizes."""
    kind: Visible = BinaryVisible() if name == "binary" else GaussianVisible(sigma)
    for size in categories:
        kind = LabelledVisible(kind, size)
    return kind
