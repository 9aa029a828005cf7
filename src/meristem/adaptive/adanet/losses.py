"""The convex losses of AdaNet's objective, with the derivatives that the convex fit needs.

Outputs f have the shape (..., n, outputs). Two classes have one output, and targets of -1 and +1. More
classes have an output each, and one-hot targets. Regression has targets (n, outputs) as they are.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Loss(Protocol):
    """A loss that is convex in the outputs."""

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """The loss of each row (n,)."""
        ...

    def slope(self, f: Tensor, y: Tensor) -> Tensor:
        """Its derivative with respect to the outputs (n, outputs)."""
        ...

    def curvature(self, f: Tensor, y: Tensor, direction: Tensor) -> Tensor:
        """Its second derivative, applied to a direction (n, outputs)."""
        ...

    def probabilities(self, f: Tensor) -> Tensor:
        """The class probabilities for which f minimises the expected loss (n, classes)."""
        ...


class Logistic:
    """Phi(1 - y f) with Phi(x) = ln(1 + e^x) (AdaNet, eq. 4)."""

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return F.softplus(1 - y * f)[..., 0]

    def slope(self, f: Tensor, y: Tensor) -> Tensor:
        return -y * torch.sigmoid(1 - y * f)

    def curvature(self, f: Tensor, y: Tensor, direction: Tensor) -> Tensor:
        s = torch.sigmoid(1 - y * f)
        return s * (1 - s) * direction

    def probabilities(self, f: Tensor) -> Tensor:
        # p sigmoid(1 - f) = (1 - p) sigmoid(1 + f): because of the offset 1 it is not the logistic curve
        scores = torch.cat([F.logsigmoid(1 - f), F.logsigmoid(1 + f)], 1)
        return torch.softmax(scores, 1)


class Exponential:
    """Phi(1 - y f) with Phi(x) = e^x."""

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.exp(1 - y * f)[..., 0]

    def slope(self, f: Tensor, y: Tensor) -> Tensor:
        return -y * torch.exp(1 - y * f)

    def curvature(self, f: Tensor, y: Tensor, direction: Tensor) -> Tensor:
        return torch.exp(1 - y * f) * direction

    def probabilities(self, f: Tensor) -> Tensor:
        return torch.softmax(torch.cat([-f, f], 1), 1)


class Softmax:
    """The cross entropy of several classes."""

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.logsumexp(f, -1) - (f * y).sum(-1)

    def slope(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.softmax(f, -1) - y

    def curvature(self, f: Tensor, y: Tensor, direction: Tensor) -> Tensor:
        p = torch.softmax(f, -1)
        return p * (direction - (p * direction).sum(-1, keepdim=True))

    def probabilities(self, f: Tensor) -> Tensor:
        return torch.softmax(f, 1)


class Squared:
    """Half the squared error."""

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y).square().sum(-1) / 2

    def slope(self, f: Tensor, y: Tensor) -> Tensor:
        return f - y

    def curvature(self, f: Tensor, y: Tensor, direction: Tensor) -> Tensor:
        return direction

    def probabilities(self, f: Tensor) -> Tensor:
        raise TypeError("a squared error has no classes")


LOSSES: dict[str, type[Loss]] = {"logistic": Logistic, "exponential": Exponential}
