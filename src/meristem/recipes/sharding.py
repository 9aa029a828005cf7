"""Processes that share a network: one opens it, and the others know only its shapes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def is_first_process() -> bool:
    """Whether this is the first process that torchrun started, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def all_sharded(model: nn.Module) -> bool:
    """Whether FSDP distributes the whole state. A network with buffers of its own must be opened by every
    process.
    """
    return set(model.state_dict()) <= {name for name, _ in model.named_parameters(remove_duplicate=False)}


def without_weights(build: Callable[[], Network]) -> Network:
    """The network that `build` builds, with float32 parameters that are never written. They have addresses,
    by which accelerate identifies them, and the system gives them no memory. Buffers are real.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = build()
    known: dict[int, nn.Parameter] = {}  # a shared parameter stays shared
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in known:
                    untouched = torch.empty(parameter.shape, dtype=torch.float32)
                    known[id(parameter)] = nn.Parameter(untouched, requires_grad=parameter.requires_grad)
                module._parameters[name] = known[id(parameter)]
    return model
