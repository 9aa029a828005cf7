"""A multilayer perceptron and its supervised training: Adam, and early stopping on a held-out part with the
best weights kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meristem.adaptive.stopping import Stopping
from meristem.adaptive.tensors import batches

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}


def mlp(sizes: Sequence[int], activation: str = "sigmoid") -> nn.Sequential:
    """Linear layers of the given sizes (inputs first, outputs last), with an activation between each two."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Training:
    """The options of supervised training.

    Args:
        learning_rate, weight_decay: the options of AdamW.
        batch_size: the rows in a step.
        max_epochs: the number of passes, at most.
        validation_fraction: the share of rows held out for early stopping. 0 trains for `max_epochs`.
        n_iter_no_change: the number of passes without a lower held-out loss after which training stops.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 64
    max_epochs: int = 200
    validation_fraction: float = 0.1
    n_iter_no_change: int = 20


def loss_of(outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean of the cross entropy (whole numbers as targets) or of the squared error (real
    targets).
    """
    if targets.is_floating_point():
        each = (outputs - targets).square().mean(-1)
    else:
        each = F.cross_entropy(outputs, targets, reduction="none")
    return (each * weight).sum() / weight.sum()


def train_supervised(
    network: nn.Module, x: Tensor, y: Tensor, weight: Tensor, training: Training, generator: torch.Generator
) -> list[dict[str, float]]:
    """Train `network` in place on x (n, features) and y, which holds classes (n,) or numbers (n, outputs).
    `weight` has the shape (n,).

    Returns:
        A record of each pass: `loss`, and `validation_loss` if rows are held out.
    """
    shuffled = torch.randperm(len(x), generator=generator, device=x.device)
    held = int(training.validation_fraction * len(x))
    held_out, rows = shuffled[:held], shuffled[held:]
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    history: list[dict[str, float]] = []
    stopping = Stopping(network.parameters(), training.n_iter_no_change)
    for epoch in range(training.max_epochs):
        total = 0.0
        for index in batches(len(rows), training.batch_size, generator):
            chosen = rows[index]
            loss = loss_of(network(x[chosen]), y[chosen], weight[chosen].clamp(min=1e-12))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        record = {"loss": total / max(1, len(rows))}
        history.append(record)
        if not held:
            continue
        with torch.no_grad():
            record["validation_loss"] = float(loss_of(network(x[held_out]), y[held_out], weight[held_out] + 1e-12))
        if stopping.over(record["validation_loss"], epoch):
            break
    stopping.restore()
    return history
