"""Counted floating-point operations along a path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from meristem.anatomy.flops import training_flops, training_flops_by_module
from meristem.subnetworks.blocks import lists_of_blocks
from meristem.subnetworks.gate import along
from meristem.subnetworks.path import Path


class PathFlops:
    """The FLOPs of forward and backward pass on a batch along any path: those of the whole network without
    those of skipped blocks.

    Each width is counted once, by shapes (see `anatomy.flops`). Each path with frozen blocks is counted by
    itself, because no gradient passes to them.

    Args:
        model: as in `training_flops`.
        inputs: as in `training_flops`.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        self._model, self._inputs = model, inputs
        self._by_width: dict[float, tuple[int, dict[str, list[int]]]] = {}
        self._by_path: dict[tuple, int] = {}

    def of(self, paths: Mapping[str, Path]) -> int:
        """The FLOPs along these paths, one for each list of blocks. Raises what `training_flops` raises."""
        if any(path.frozen for path in paths.values()):
            return self._along(paths)
        total, blocks = self._counted(paths)
        skipped = (blocks[name][layer] for name, path in paths.items() for layer in _skipped(path))
        return total - sum(skipped)

    def _along(self, paths: Mapping[str, Path]) -> int:
        key = tuple((name, path.active, path.frozen, path.width) for name, path in sorted(paths.items()))
        if key not in self._by_path:
            with along(self._model, paths):
                self._by_path[key] = training_flops(self._model, self._inputs)
        return self._by_path[key]

    def _counted(self, paths: Mapping[str, Path]) -> tuple[int, dict[str, list[int]]]:
        """The FLOPs of the whole network at the width of the paths, and the share of each block."""
        width = min((path.width for path in paths.values()), default=1.0)
        if width not in self._by_width:
            full = {name: replace(Path.full(len(path.active)), width=width) for name, path in paths.items()}
            names = [
                f"{blocks.name}.{layer}"
                for blocks in (lists_of_blocks(self._model) if full else [])
                for layer in range(len(blocks.modules))
                if blocks.name in full
            ]
            with along(self._model, full):
                total, shares = training_flops_by_module(self._model, self._inputs, names)
            by_name = dict(zip(names, shares, strict=True))
            own = {name: [by_name[f"{name}.{i}"] for i in range(len(path.active))] for name, path in full.items()}
            self._by_width[width] = total, own
        return self._by_width[width]


def _skipped(path: Path) -> list[int]:
    return [layer for layer, active in enumerate(path.active) if not active]
