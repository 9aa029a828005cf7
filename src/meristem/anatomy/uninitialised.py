"""Building a network without drawing its initial weights: for shapes, and for networks that are filled afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn


def uninitialised(make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` builds, its weights as they are allocated, its ties made."""
    with _without_initial_weights():
        model = make()
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]
    return model


@contextlib.contextmanager
def _without_initial_weights() -> Iterator[None]:
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # a network outside transformers, on a machine without it
        yield
        return
    with no_init_weights():
        yield
