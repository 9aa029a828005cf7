"""Counted floating-point operations of one training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils import flop_counter

from meristem.subnetworks import Path
from meristem.subnetworks.gate import along


def training_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """FLOPs of forward and backward on a batch with its labels: every matrix product and attention, counted as it runs.

    torch 2.13 counts scaled-dot-product attention on CPU as nothing; its flash formula is put in for it. Causal masking
    is not discounted, and the optimizer's elementwise work is not counted.
    """
    was_training = model.training
    model.train()
    with _counting_attention_on_cpu(), flop_counter.FlopCounterMode(display=False) as counter:
        device = next(model.parameters()).device
        model(**{name: tensor.to(device) for name, tensor in inputs.items()}).loss.backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return counter.get_total_flops()


class PathFlops:
    """FLOPs of forward and backward on a batch, along any path: those of the whole network less those of skipped blocks.

    Args:
        model, inputs: as in `training_flops`.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        self._count = lambda: training_flops(model, inputs)
        self._model = model
        self._by_width: dict[float, tuple[int, dict[str, list[int]]]] = {}

    def of(self, paths: Mapping[str, Path]) -> int:
        """FLOPs along these paths, one for each list of blocks. Of frozen blocks the forward pass counts, a third."""
        width = min((path.width for path in paths.values()), default=1.0)
        total, blocks = self._counted(width, paths)
        for name, path in paths.items():
            for layer, flops in enumerate(blocks[name]):
                total -= flops if not path.active[layer] else 2 * flops // 3 if layer in path.frozen else 0
        return total

    def _counted(self, width: float, paths: Mapping[str, Path]) -> tuple[int, dict[str, list[int]]]:
        """The whole network's FLOPs at a width, and each block's share, measured by leaving it out."""
        if width not in self._by_width:
            full = {name: replace(Path.full(len(path.active)), width=width) for name, path in paths.items()}
            with along(self._model, full):
                total = self._count()
            blocks: dict[str, list[int]] = {}
            for name, path in full.items():
                for layer in range(len(path.active)):
                    without = tuple(i != layer for i in range(len(path.active)))
                    with along(self._model, {**full, name: replace(path, active=without)}):
                        blocks.setdefault(name, []).append(total - self._count())
            self._by_width[width] = total, blocks
        return self._by_width[width]


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
