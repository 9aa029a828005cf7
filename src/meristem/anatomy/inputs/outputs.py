"""The outputs of a network: its logits, or every tensor of its output by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.streamed import is_streamed, run_whole
from meristem.errors import MeristemError

CACHES = ("cache", "past_key_values", "mems", "state", "past_buckets_states", "encoder_cache", "decoder_cache")
BY_LAYER = (
    r".*(hidden_states|attentions|router_logits)"  # a tuple with one entry for each layer: another depth has others
)


def device_of(model: nn.Module) -> torch.device:
    """The device of a network: that of its first parameter, or the CPU if it is streamed."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def outputs_of(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every floating-point tensor of the output by its name, in the model's own dtype, without gradients.

    Names of nested outputs and entries of tuples are joined by dots ("vision_model_output.last_hidden_state",
    "feature_maps.2"). A bare tensor has the name "logits". Caches, the separate outputs of layers and empty
    tensors are left out.

    Args:
        model: the network, which runs as it is (mode and dtype). Its random numbers have the same seed every
            time.
        inputs: keyword arguments of forward. Floating-point tensors are converted to the dtype and device of
            the model.

    Raises:
        MeristemError: if the output contains no tensor.
    """
    found = {name: tensor for name, tensor in _tensors(_run(model, inputs), "") if tensor.numel()}
    if not found:
        raise MeristemError(f"{type(model).__name__} returns no floating-point tensor that could be compared")
    return found


def logits_of(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The logits of the model on these inputs, or its first output. Otherwise as `outputs_of`."""
    outputs = outputs_of(model, inputs)
    return outputs.get("logits", next(iter(outputs.values())))


def _run(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    dtype, device = next(model.parameters()).dtype, device_of(model)
    cast = {name: moved_to(value, device, dtype) for name, value in inputs.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return model(**cast)
        except RuntimeError as error:
            if not is_streamed(model) or "meta" not in str(error):
                raise
            run_whole(model)  # it uses weights of a block that it does not call
            return model(**cast)


def moved_to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """An argument of forward on this device. Floating-point tensors are converted to this dtype."""
    if isinstance(value, list | tuple):
        return type(value)(moved_to(entry, device, dtype) for entry in value)
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _tensors(output: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path or "logits", output
    elif dataclasses.is_dataclass(output) and not isinstance(output, type | Mapping):
        named = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
        yield from _tensors(named, path)
    elif isinstance(output, Mapping):
        for name, value in output.items():
            if name not in CACHES and not (isinstance(value, list | tuple) and re.fullmatch(BY_LAYER, str(name))):
                yield from _tensors(value, f"{path}.{name}" if path else str(name))
    elif isinstance(output, list | tuple):
        for number, value in enumerate(output):
            yield from _tensors(value, f"{path}.{number}" if path else str(number))
