"""Processes that share a network: one opens it, the others know its shapes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def is_first_process() -> bool:
    """Of those that torchrun started; also the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def all_sharded(model: nn.Module) -> bool:
    """Whether FSDP hands out all of the state: a network with buffers of its own has to be opened by every process."""
    return set(model.state_dict()) <= {name for name, _ in model.named_parameters(remove_duplicate=False)}


def without_weights(build: Callable[[], Network]) -> Network:
    """What `build` makes, with float32 parameters that nobody has written to: they have addresses, by which accelerate knows them, and the system
    gives them no memory. Buffers are real."""
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
