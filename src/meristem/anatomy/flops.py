"""Counted floating-point operations: of one training step, and of every block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import flop_counter

from meristem.anatomy.trace import run_watched


def training_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """FLOPs of forward and backward on a batch with its labels: every matrix product and attention, counted as it runs.

    torch 2.13 counts scaled-dot-product attention on CPU as nothing; its flash formula is put in for it. Causal masking
    is not discounted, and the optimizer's elementwise work is not counted.
    """
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module in modes:
        if isinstance(module, _NormBase):  # it counts nothing, and its running statistics have to stay
            module.eval()
    with _counting_attention_on_cpu(), flop_counter.FlopCounterMode(display=False) as counter:
        device = next(model.parameters()).device
        model(**{name: tensor.to(device) for name, tensor in inputs.items()}).loss.backward()
    model.zero_grad(set_to_none=True)
    for module, training in modes.items():
        module.training = training
    return counter.get_total_flops()


def forward_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """FLOPs of a forward pass in evaluation mode; the network may be on the meta device."""
    modes, device = {module: module.training for module in model.modules()}, next(model.parameters()).device
    model.eval()
    with _counting_attention_on_cpu(), flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**{name: tensor.to(device) for name, tensor in inputs.items()})
    for module, training in modes.items():
        module.training = training
    return counter.get_total_flops()


def block_flops(model: nn.Module, prefixes: Sequence[str], inputs: Mapping[str, Tensor] | None = None) -> list[int]:
    """FLOPs of the forward pass in each block of these lists, one list after the other.

    Args:
        prefixes: of the lists of blocks, such as "model.layers".
        inputs: what the network is run on; one short random input by default.
    """
    with _counting_attention_on_cpu(), flop_counter.FlopCounterMode(display=False) as counter:
        run_watched(model, [], inputs)
    by_module = {path.partition(".")[2]: sum(found.values()) for path, found in counter.get_flop_counts().items()}
    return [
        by_module.get(f"{prefix}.{name}", 0)
        for prefix in prefixes
        for name, _ in model.get_submodule(prefix).named_children()
    ]


@contextlib.contextmanager
def _counting_attention_on_cpu() -> Iterator[None]:
    aten, registry = torch.ops.aten, flop_counter.flop_registry
    pairs = {
        aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
    }
    added = [cpu for cpu in pairs if cpu not in registry]
    registry.update({cpu: registry[pairs[cpu]] for cpu in added})
    try:
        yield
    finally:
        for cpu in added:
            del registry[cpu]
