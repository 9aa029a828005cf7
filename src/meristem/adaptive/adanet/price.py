"""The price of output weights, adanet_lambda, chosen on rows that are held out for it."""

from __future__ import annotations

import torch
from torch import Tensor

from meristem.adaptive.adanet.candidates import Options, Sample, complexity_of, trained
from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.adanet.refit import Problem, path

PRICES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
HELD_OUT = 0.25
MOST_ROWS = 20_000  # more say nothing more about a price


@torch.no_grad()
def chosen_price(
    module: AdaNetModule,
    x: Tensor,
    targets: Tensor,
    weight: Tensor,
    samples: float,
    loss: Loss,
    options: Options,
    seed: int,
) -> float:
    """The adanet_lambda with which a first block, trained on three quarters of the rows, has the lowest loss on the others.

    Args:
        x: (n, inputs). targets: (n, outputs). weight: (n,). samples: m.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:MOST_ROWS]
    held = max(1, int(HELD_OUT * len(order)))
    test, train = (_sample(module, x[i], targets[i], weight[i], samples) for i in (order[:held], order[held:]))
    (found,) = trained(train, [1], [], options, loss, [seed])
    activities, seen = found.block(train.features, [])[-1], found.block(test.features, [])[-1]
    r = complexity_of(found.widths, train, activities, options)
    gammas = [price * r + options.adanet_beta for price in PRICES]
    rows = (train.offset, activities, train.targets, train.shares)
    weights = path(Problem(loss, *(part.float() for part in rows), 0.0), gammas)
    losses = [float(test.shares @ loss.value(seen @ w.double(), test.targets)) for w in weights]
    return PRICES[losses.index(min(losses))]


def _sample(module: AdaNetModule, x: Tensor, targets: Tensor, weight: Tensor, samples: float) -> Sample:
    features = module.features(x)
    return Sample(features, [], torch.zeros_like(targets), targets, weight / weight.sum(), samples)
