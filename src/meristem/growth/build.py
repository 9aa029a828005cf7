"""From a plan to a module: the large network, filled tensor by tensor."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable

import torch
from torch import nn

from meristem.anatomy import Anatomy, Builder
from meristem.growth.apply import grow_tensors
from meristem.growth.plan import GrowthPlan


def in_float32(anatomy: Anatomy, model: nn.Module) -> nn.Module:
    """The same network with its weights in float32 and its constants (rotary tables, embedding scales) unrounded."""
    exact = _unfilled(anatomy.builder)
    for name, tensor in model.state_dict().items():
        _put(exact, name, tensor.float() if tensor.is_floating_point() else tensor)
    return exact.eval()


def build(plan: GrowthPlan, model: nn.Module) -> nn.Module:
    """The large network of `plan`, with weights from `model`; each tensor keeps its source's dtype and device.

    Never randomly initialised: memory is touched once, by the grown weights.
    """
    state = model.state_dict()
    return filled(plan.target, grow_tensors(plan, state.__getitem__), like=model)


def filled(target: Builder, tensors: Iterable[tuple[str, torch.Tensor]], like: nn.Module) -> nn.Module:
    """The target's network with these tensors by name; its mode and generation config are those of `like`."""
    grown = _unfilled(target)
    for name, tensor in tensors:
        _put(grown, name, tensor)
    generation_config = getattr(like, "generation_config", None)
    if generation_config is not None:
        grown.generation_config = copy.deepcopy(generation_config)
    return grown.train(like.training)


def _unfilled(builder: Builder) -> nn.Module:
    """The builder's network without initial weights, its ties made."""
    with _uninitialised():
        model = builder.build(builder.sizes, builder.depths)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]
    return model


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner.get_parameter(leaf).data = tensor  # tied names share the parameter, so one assignment serves all


@contextlib.contextmanager
def _uninitialised():
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # a network outside transformers, on a machine without it
        yield
        return
    with no_init_weights():
        yield
