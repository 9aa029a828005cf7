"""Counted floating-point operations of one training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils import flop_counter


def training_flops(model: nn.Module, sequence_length: int, vocab_size: int) -> int:
    """FLOPs of forward and backward for one sequence: every matrix product and attention, counted as it runs.

    torch 2.13 counts scaled-dot-product attention on CPU as nothing; its flash formula is put in for it. Causal masking
    is not discounted, and the optimizer's elementwise work is not counted.
    """
    tokens = torch.zeros(1, sequence_length, dtype=torch.long) + torch.arange(sequence_length) % vocab_size
    was_training = model.training
    model.train()
    with _counting_attention_on_cpu(), flop_counter.FlopCounterMode(display=False) as counter:
        tokens = tokens.to(next(model.parameters()).device)
        model(input_ids=tokens, labels=tokens).loss.backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return counter.get_total_flops()


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
