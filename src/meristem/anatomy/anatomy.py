"""What a network is made of: its axes, and along which of them each dimension of each tensor runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from meristem.algebra import Layout
from meristem.anatomy.builder import Builder, FunctionBuilder
from meristem.anatomy.heads import spelt_out
from meristem.anatomy.infer import infer, structure_of_model
from meristem.anatomy.norms import NormFacts
from meristem.anatomy.overrides import Override
from meristem.anatomy.structure import Axis, BlockList, TensorAnatomy
from meristem.anatomy.table import as_text


@dataclass(frozen=True)
class Anatomy:
    """The axes, tensors and blocks of one network, as data. Built by `Anatomy.of` (transformers) or `Anatomy.infer`."""

    builder: Builder
    axes: Mapping[str, Axis]
    tensors: Mapping[str, TensorAnatomy]
    blocks: tuple[BlockList, ...]
    override: Override = field(default_factory=Override)
    norms: Mapping[str, NormFacts] = field(default_factory=dict)  # by module path
    unit_lists: Mapping[str, str] = field(default_factory=dict)  # {folded prefix: axis}, see `unit_lists.py`

    @staticmethod
    def of(model: nn.Module, overrides: Mapping[str, Override] | None = None) -> Anatomy:
        """The anatomy of a transformers model, inferred from meta-device builds of its own architecture.

        Args:
            model: a PreTrainedModel; its weights are not touched.
            overrides: further entries by model type, laid over `anatomy.overrides.OVERRIDES`.

        Raises:
            AnatomyError: if some tensor's shape follows no layout that Meristem knows, naming the tensor.
        """
        builder, override, found = structure_of_model(model, overrides)
        return Anatomy(builder, found.axes, found.tensors, found.blocks, override, found.norms, found.unit_lists)

    @staticmethod
    def infer(build, sizes: Mapping[str, int], depths: Mapping[str, int] | None = None) -> Anatomy:
        """The anatomy of any network that `build(**sizes, **depths)` returns as an nn.Module.

        Args:
            build: called on the meta device at `sizes`, and with each size doubled.
            sizes: the size of each axis that may grow, for example {"hidden": 64, "ffn": 256}.
            depths: the number of repeated blocks, by argument name.

        Raises:
            AnatomyError: if some tensor's shape is not explained by the axes.
        """
        builder = FunctionBuilder(build, sizes, depths)
        found = infer(builder, Override())
        return Anatomy(builder, found.axes, found.tensors, found.blocks, norms=found.norms, unit_lists=found.unit_lists)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: axis.size for name, axis in self.axes.items()}

    @property
    def depths(self) -> dict[str, int]:
        return {blocks.axis: blocks.length for blocks in self.blocks}

    def of_kind(self, kind: str) -> list[Axis]:
        return [axis for axis in self.axes.values() if axis.kind == kind]

    def axes_of(self, layout: Layout) -> set[str]:
        """The axes of a layout, with query heads spelt out as key-value heads and groups where the anatomy counts those."""
        return spelt_out(layout.axes(), self.axes)

    def stream(self, tensor: TensorAnatomy) -> str:
        """The layout of the residual stream in the block of a tensor: what the block's first norm or reader takes in."""
        block = [t for t in self.tensors.values() if t.block == tensor.block]
        for role in ("gain", "read"):
            for dimension in (d for t in block for d in t.dimensions if d.role == role):
                if any(self.axes[a].kind == "hidden" for a in dimension.layout.axes() if a in self.axes):
                    return str(dimension.layout)
        return "hidden"

    def __str__(self) -> str:
        return as_text(self)
