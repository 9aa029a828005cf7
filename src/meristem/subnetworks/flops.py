"""Counted floating-point operations along a path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from meristem.anatomy.flops import training_flops
from meristem.subnetworks.gate import along
from meristem.subnetworks.path import Path


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
