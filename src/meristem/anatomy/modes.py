"""Contexts for running a network: in evaluation mode, operator by operator."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """A context in which the model is in evaluation mode. Afterwards each of its modules has its earlier
    mode.

    The modes of modules may differ: batch norms that are frozen in a network that trains, networks that share
    a parent for a while.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def step_by_step() -> Iterator[None]:
    """A context in which `nn.MultiheadAttention` and recurrent layers run as the operators of which they
    consist, so that a pass can be watched.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    one_operator = torch.backends.mkldnn.flags(enabled=False)
    torch.backends.mha.set_fastpath_enabled(False)
    _quietly(one_operator.__enter__)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        _quietly(lambda: one_operator.__exit__(None, None, None))


def _quietly(change: Callable[[], object]) -> None:
    """Suppress torch's warning about other devices when these flags change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change()
