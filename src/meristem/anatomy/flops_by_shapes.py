"""FLOPs counted from shapes alone: no numbers, no memory, no random draws."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.func import functional_call
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from meristem.anatomy.flop_counter import FlopCounter, counting

_VALUES_WANTED = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


def by_shapes(step: nn.Module, inputs: Mapping[str, Tensor], paths: Sequence[str]) -> FlopCounter | None:
    """Count without any numbers. None for a network that reads some.

    Args:
        step: a module whose `model` is the network.
        inputs: keyword arguments of forward.
        paths: modules of the network whose own share is counted too.
    """
    return _on_meta(step, inputs, paths) or _on_fake_tensors(step, inputs, paths)


def _on_meta(step: nn.Module, inputs: Mapping[str, Tensor], paths: Sequence[str]) -> FlopCounter | None:
    """Count on torch's meta device. This is the fast way, for a network that never names a device and reads
    no number.
    """
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in (*step.named_parameters(), *step.named_buffers())
    }
    own = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in inputs.items()}
    try:
        with (
            _quiet(),
            torch.device("meta"),
            AttentionAsOnCpu(),
            counting(step.get_submodule("model"), paths, only_meta=True) as counter,
        ):
            functional_call(step, state, (), own)
    except Exception:  # whatever it is: the other ways show it again if it is the network's own
        return None
    return counter


def _on_fake_tensors(step: nn.Module, inputs: Mapping[str, Tensor], paths: Sequence[str]) -> FlopCounter | None:
    """Count on tensors that claim to be on the CPU. This is five times slower, and works for more
    networks.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
            for name, tensor in (*step.named_parameters(), *step.named_buffers())
        }
        own = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in inputs.items()}
    try:
        with _quiet(), mode, counting(step.get_submodule("model"), paths) as counter:
            functional_call(step, state, (), own)
    except _VALUES_WANTED:
        return None
    except RuntimeError as error:
        if re.search(
            "device|swap", str(error)
        ):  # a tensor that is neither parameter nor buffer elsewhere than on the CPU; a module that casts itself
            return None
        raise
    return counter


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's report about an operator that needs numbers, because there is a second way."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class AttentionAsOnCpu(TorchFunctionMode):
    """The attention operator depends on the device. Tensors on the meta device use that of the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    with _disable_current_modes():
        tensors = [None if one is None else _on_cpu(one) for one in (query, key, value, attn_mask)]
        choice = torch._fused_sdp_choice(*tensors, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)  # pyright: ignore[reportCallIssue]
    if choice != SDPBackend.FLASH_ATTENTION.value:
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
    mask = attn_mask.to(query.dtype) if attn_mask is not None and attn_mask.dtype == torch.bool else attn_mask
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]


def _on_cpu(tensor: Tensor) -> Tensor:
    """The same layout on the CPU, in memory that is not used."""
    there = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return there.requires_grad_(tensor.requires_grad)
