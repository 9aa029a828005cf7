"""The names of one parameter: tied weights have several in the state dict."""

from __future__ import annotations

from torch import nn


def names_of_parameters(model: nn.Module) -> list[list[str]]:
    """All names of each parameter, in the order in which the network registers them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())
