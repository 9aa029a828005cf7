"""Build a network without drawing its initial weights, for shapes and for networks that are filled
afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn


def uninitialised(make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` builds, with weights as they are allocated, and with its ties."""
    with without_initial_weights():
        return tied(make())


def tied(model: nn.Module) -> nn.Module:
    """The model, with the ties that its class declares."""
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]
    return model


@contextlib.contextmanager
def without_initial_weights() -> Iterator[None]:
    """A context in which transformers and torch's layers draw no initial weights."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # a network outside transformers, on a machine without it
        yield
        return
    with no_init_weights():
        yield
