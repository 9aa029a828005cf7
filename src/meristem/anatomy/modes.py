"""How a network runs for a while: in evaluation mode, operator by operator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the model is in evaluation mode; afterwards each of its modules is in the mode that it was in.

    The modules may differ: batch norms that are frozen in a network that trains, networks that share a parent for a while.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def step_by_step() -> Iterator[None]:
    """`nn.MultiheadAttention` as the operators that it is made of, and not as one, so that a pass can be watched."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
