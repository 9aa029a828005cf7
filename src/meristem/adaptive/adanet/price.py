"""Choices made on held-out rows: the price of output weights, adanet_lambda, and whether numbers are encoded
in bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.adanet.refit import Problem, path
from meristem.adaptive.adanet.sample import Sample
from meristem.adaptive.adanet.training import Options, complexity_of, trained

PRICES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
HELD_OUT = 0.25
PART = 1 / 3  # of the best price for one block, since shrinkage already regularises the blocks
RISES = 2  # prices in a row without a lower loss, after which no lower price is tried
ERRORS = 2  # standard errors by which two layers must be better than one
MOST_ROWS = 20_000  # more rows do not improve the choice of a price


@dataclass(frozen=True)
class Rows:
    """Rows on which the choice is made: x (n, inputs), targets (n, outputs), weight (n,), and m, the rows
    that the weights represent.
    """

    x: Tensor
    targets: Tensor
    weight: Tensor
    samples: float


@dataclass(frozen=True)
class Start:
    """The choice: the empty network, adanet_lambda, and the number of layers of a proposed block, at most."""

    module: AdaNetModule
    price: float
    max_depth: int


@torch.no_grad()
def chosen_start(
    modules: Sequence[AdaNetModule],
    rows: Rows,
    prices: Sequence[float],
    loss: Loss,
    options: Options,
    seed: int,
    max_depth: int = 1,
) -> Start:
    """The empty network whose first block, trained on three quarters of the rows, has the lowest loss on the
    others, and an adanet_lambda.

    The adanet_lambda is a third (`PART`) of the price with the lowest loss, because the shrinkage of the
    blocks already regularises them. If there are several prices, a block of two layers is tried too. Two
    layers are proposed later only if its loss is lower by two standard errors. A price per unit that suits
    one layer leaves deeper blocks no chance, and their training takes half of the time.

    Args:
        modules: networks without blocks, which differ in the features that they read.
        prices: the prices to choose from, in falling order. A single price is returned as it is.
    """
    if len(modules) == len(prices) == 1:
        return Start(modules[0], prices[0], max_depth)
    order = torch.randperm(len(rows.x), generator=torch.Generator().manual_seed(seed), device="cpu")[:MOST_ROWS]
    held = max(1, int(HELD_OUT * len(order)))

    def tried(module: AdaNetModule, depth: int) -> Tried:
        test, train = (_sample(module, rows, index) for index in (order[:held], order[held:]))
        return _tried(module, train, test, depth, prices, loss, options, seed)

    best = min((tried(module, 1) for module in modules), key=lambda one: one.loss)
    if len(prices) == 1:
        return Start(best.module, prices[0], max_depth)
    two = tried(best.module, 2) if max_depth > 1 else best
    if two.is_below(best):
        return Start(two.module, PART * two.price, max_depth)
    return Start(best.module, PART * best.price, 1)


@dataclass(frozen=True)
class Tried:
    """A first block at its best price: the loss of each held-out row (n,), and the shares of these rows."""

    module: AdaNetModule
    price: float
    losses: Tensor
    shares: Tensor

    @property
    def loss(self) -> float:
        return float(self.shares @ self.losses)

    def is_below(self, other: Tried) -> bool:
        """Whether the loss on the same rows is lower by more than `ERRORS` standard errors of the
        difference.
        """
        fell = other.losses - self.losses
        mean = self.shares @ fell
        error = ((self.shares @ (fell - mean).square()) / len(fell)).sqrt()
        return bool(mean > ERRORS * error)


def _tried(
    module: AdaNetModule,
    train: Sample,
    test: Sample,
    depth: int,
    prices: Sequence[float],
    loss: Loss,
    options: Options,
    seed: int,
) -> Tried:
    (found,) = trained(train, [depth], [], options, loss, [seed])
    activities, seen = found.block(train.features, [])[-1], found.block(test.features, [])[-1]
    r = complexity_of(found.widths, train, activities, options)
    gammas = [price * r + options.adanet_beta for price in prices]
    parts = (train.offset, activities, train.targets, train.shares)
    offset, units, targets, shares = parts if train.targets.shape[1] == 1 else (part.float() for part in parts)
    weights = path(Problem(loss, offset, units, targets, shares, 0.0), gammas)
    best, rises = None, 0
    for price, w in zip(prices, weights, strict=True):
        now = Tried(module, price, loss.value(seen @ w.double(), test.targets), test.shares)
        is_lower = best is None or now.loss < best.loss
        best, rises = (now, 0) if is_lower else (best, rises + 1)
        if rises == RISES:  # lower prices cost most of the time
            break
    assert best is not None
    return best


def _sample(module: AdaNetModule, rows: Rows, index: Tensor) -> Sample:
    targets, weight = rows.targets[index], rows.weight[index]
    return Sample(
        module.features(rows.x[index]), [], torch.zeros_like(targets), targets, weight / weight.sum(), rows.samples
    )
