"""Mixture weights of an ensemble: one number, one vector or one matrix for each sub-network (Weill et al.
2019, section 3).

The ensemble is linear in its weights, so the convex solver of AdaNet fits them. The penalty is part of that
problem, and zeros are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.refit import Problem, refit
from meristem.errors import MeristemError

MIXTURES = ("scalar", "vector", "matrix", "mean")


def check_mixture(kind: str) -> None:
    """Check the kind of mixture weights.

    Raises:
        MeristemError: if the kind is unknown.
    """
    if kind not in MIXTURES:
        raise MeristemError(f"mixture={kind!r} is not known; known: {', '.join(MIXTURES)}")


@dataclass(frozen=True)
class _Scalars(Problem):
    """`features` are the members' logits (n, outputs, members). The weights have the shape (members, 1)."""

    def start(self) -> Tensor:
        return self.features.new_zeros(self.features.shape[2], 1)

    def applied(self, w: Tensor) -> Tensor:
        return (self.features @ w)[:, :, 0]

    def adjoint(self, slope: Tensor) -> Tensor:
        flat = self.features.reshape(-1, self.features.shape[2])  # a tenth of the time of an einsum
        return (flat.T @ slope.reshape(-1))[:, None]

    @property
    def is_dense(self) -> bool:
        return True

    def hessian(self, outputs: Tensor) -> Tensor:
        """One column for each member."""
        return torch.cat([self.curved(outputs, unit[:, None]) for unit in torch.eye(len(self.start())).to(outputs)], 1)


@dataclass(frozen=True)
class _Vectors(Problem):
    """`features` are the members' logits (members, n, outputs). The weights have the shape (members,
    outputs).
    """

    def start(self) -> Tensor:
        return self.features.new_zeros(self.features.shape[0], self.features.shape[2])

    def applied(self, w: Tensor) -> Tensor:
        total = self.features[0] * w[0]
        for logits, own in zip(self.features[1:], w[1:], strict=True):
            total.addcmul_(logits, own)
        return total

    def adjoint(self, slope: Tensor) -> Tensor:
        return torch.stack([(logits * slope).sum(0) for logits in self.features])


@dataclass(frozen=True)
class Said:
    """The outputs of one member on all rows, in float64: last_layer (n, units), logits (n, outputs)."""

    last_layer: Tensor
    logits: Tensor


def fit_mixture(
    kind: str, members: Sequence[Said], prices: Sequence[float], targets: Tensor, loss: Loss
) -> tuple[list[Tensor], float]:
    """The optimal weights of each member, and the objective: mean loss + sum of prices |w|_1.

    Args:
        kind: "scalar": w logits, with w of shape (). "vector": w of shape (outputs,). "matrix": last_layer W,
            with W of shape (units, outputs). "mean": 1 / members, which is not fitted.
        members: the outputs of each member.
        prices: Gamma of each member.
        targets: the targets (n, outputs).
        loss: a convex loss.

    Raises:
        MeristemError: if the kind is unknown.
    """
    check_mixture(kind)
    rows = len(targets)
    shares = targets.new_full((rows,), 1 / rows)
    offset = torch.zeros_like(targets)
    if kind == "mean":
        weights = [targets.new_tensor(1 / len(members)) for _ in members]
        outputs = torch.stack([member.logits for member in members]).mean(0)
        paid = sum(price / len(members) for price in prices)
        return weights, float(shares @ loss.value(outputs, targets)) + paid
    if kind == "matrix":
        sizes = [member.last_layer.shape[1] for member in members]
        features = torch.cat([member.last_layer for member in members], 1)
        gamma = torch.cat([targets.new_full((n, 1), price) for n, price in zip(sizes, prices, strict=True)])
        problem = Problem(loss, offset, features, targets, shares, gamma)
    else:
        chosen, last = (_Scalars, 2) if kind == "scalar" else (_Vectors, 0)
        features = torch.stack([member.logits for member in members], last)
        problem = chosen(loss, offset, features, targets, shares, targets.new_tensor(prices)[:, None])
        sizes = [1] * len(members)
    found = refit(problem, tolerance=1e-8, rounds=4, newton_steps=4)
    split = list(found.split(sizes)) if kind == "matrix" else [row if kind == "vector" else row[0] for row in found]
    return split, float(problem.value(found))
