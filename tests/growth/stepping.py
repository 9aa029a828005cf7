"""A short training run on random tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: Iterable[int]) -> list[float]:
    """The losses before each step; a seed draws the tokens of each."""
    losses = []
    for seed in seeds:
        tokens = torch.randint(3, 67, (4, 16), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
