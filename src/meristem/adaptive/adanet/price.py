"""Chosen on rows that are held out for it: the price of output weights, adanet_lambda, and whether numbers are encoded in bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meristem.adaptive.adanet.candidates import Options, Sample, complexity_of, trained
from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.adanet.refit import Problem, path

PRICES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
HELD_OUT = 0.25
PART = 1 / 3  # of the price at which one block is best alone: blocks that join by shares are held back by that already
MOST_ROWS = 20_000  # more say nothing more about a price


@dataclass(frozen=True)
class Rows:
    """Rows to choose on: x (n, inputs), targets (n, outputs), weight (n,), and m, the rows that they stand for."""

    x: Tensor
    targets: Tensor
    weight: Tensor
    samples: float


@torch.no_grad()
def chosen_start(
    modules: Sequence[AdaNetModule], rows: Rows, prices: Sequence[float], loss: Loss, options: Options, seed: int
) -> tuple[AdaNetModule, float]:
    """The empty network and the adanet_lambda with which a first block, trained on three quarters of the rows, has the lowest loss on the others.

    Args:
        modules: networks without blocks, which differ in the features that they read. prices: falling.
    """
    if len(modules) == len(prices) == 1:
        return modules[0], prices[0]
    order = torch.randperm(len(rows.x), generator=torch.Generator().manual_seed(seed), device="cpu")[:MOST_ROWS]
    held = max(1, int(HELD_OUT * len(order)))
    found = []
    for module in modules:
        test, train = (_sample(module, rows, index) for index in (order[:held], order[held:]))
        found += [(value, module, price) for value, price in zip(
            _held_out_losses(train, test, prices, loss, options, seed), prices, strict=True
        )]  # fmt: skip
    _, module, price = min(found, key=lambda one: one[0])
    return module, price * PART if len(prices) > 1 else price


def _held_out_losses(
    train: Sample, test: Sample, prices: Sequence[float], loss: Loss, options: Options, seed: int
) -> list[float]:
    """The loss on other rows of one block, by the price of its output weights."""
    (found,) = trained(train, [1], [], options, loss, [seed])
    activities, seen = found.block(train.features, [])[-1], found.block(test.features, [])[-1]
    r = complexity_of(found.widths, train, activities, options)
    gammas = [price * r + options.adanet_beta for price in prices]
    offset, units, targets, shares = (part.float() for part in (train.offset, activities, train.targets, train.shares))
    weights = path(Problem(loss, offset, units, targets, shares, 0.0), gammas)
    return [float(test.shares @ loss.value(seen @ w.double(), test.targets)) for w in weights]


def _sample(module: AdaNetModule, rows: Rows, index: Tensor) -> Sample:
    targets, weight = rows.targets[index], rows.weight[index]
    return Sample(
        module.features(rows.x[index]), [], torch.zeros_like(targets), targets, weight / weight.sum(), rows.samples
    )
