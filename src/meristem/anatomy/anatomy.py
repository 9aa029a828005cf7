"""What a network is made of: its axes, and along which of them each dimension of each tensor runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meristem.algebra import Layout
from meristem.anatomy.builder import Builder
from meristem.anatomy.conventions import KINDS
from meristem.anatomy.norms import NormFacts
from meristem.anatomy.overrides import Override
from meristem.anatomy.roles import Role

if TYPE_CHECKING:
    from torch import nn


def kind_of(axis: str) -> str:
    """ "ffn" for "decoder_ffn". An axis of another name ("channels", "width") counts as hidden: it can be widened."""
    return next((kind for kind in KINDS if axis == kind or axis.endswith("_" + kind)), "hidden")


def folded(name: str) -> str:
    """A tensor's name with * for the numbers in it: the same for every layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


@dataclass(frozen=True)
class Axis:
    """A named axis: its size, its kind ("ffn" for "decoder_ffn") and the config field that sets it."""

    name: str
    size: int
    source: str

    @property
    def kind(self) -> str:
        return kind_of(self.name)

    @property
    def scope(self) -> str:
        """ "encoder_", "decoder_", "moe_" ... or ""."""
        return self.name.removesuffix(self.kind) if self.name.endswith(self.kind) else ""


@dataclass(frozen=True)
class Dimension:
    """One dimension of a tensor: its layout over axes, its role, and how that is known."""

    layout: Layout
    role: Role
    source: str  # "shape", "convention" or "override"


@dataclass(frozen=True)
class TensorAnatomy:
    """One entry of the state dict. `tied_to` names the tensor whose memory it shares."""

    name: str
    shape: tuple[int, ...]
    dimensions: tuple[Dimension, ...]
    block: tuple[str, int] | None = None  # (axis of depth, index) when it belongs to a repeated block
    tied_to: str | None = None

    @property
    def reads(self) -> bool:
        return any(d.role == "read" for d in self.dimensions)

    def writes(self, layout: str) -> bool:
        """Does it write units of just this layout, such as the output projections of a block into the residual stream?"""
        return any(d.role == "write" and str(d.layout) == layout for d in self.dimensions)


@dataclass(frozen=True)
class BlockList:
    """A list of repeated blocks: tensors are named `{prefix}.{index}.…`."""

    axis: str
    prefix: str
    length: int


@dataclass(frozen=True)
class Anatomy:
    """The axes, tensors and blocks of one network, as data. Built by `Anatomy.of` (transformers) or `Anatomy.infer`."""

    builder: Builder
    axes: Mapping[str, Axis]
    tensors: Mapping[str, TensorAnatomy]
    blocks: tuple[BlockList, ...]
    override: Override = field(default_factory=Override)
    norms: Mapping[str, NormFacts] = field(default_factory=dict)  # by module path

    @staticmethod
    def of(model: nn.Module, overrides: Mapping[str, Override] | None = None) -> Anatomy:
        """The anatomy of a transformers model, inferred from meta-device builds of its own architecture.

        Args:
            model: a PreTrainedModel; its weights are not touched.
            overrides: further entries by model type, laid over `anatomy.overrides.OVERRIDES`.

        Raises:
            AnatomyError: if some tensor's shape follows no layout that Meristem knows, naming the tensor.
        """
        from meristem.anatomy.infer import anatomy_of_model

        return anatomy_of_model(model, overrides)

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
        from meristem.anatomy.builder import FunctionBuilder
        from meristem.anatomy.infer import infer

        return infer(FunctionBuilder(build, sizes, depths), Override())

    @property
    def sizes(self) -> dict[str, int]:
        return {name: axis.size for name, axis in self.axes.items()}

    @property
    def depths(self) -> dict[str, int]:
        return {blocks.axis: blocks.length for blocks in self.blocks}

    def of_kind(self, kind: str) -> list[Axis]:
        return [axis for axis in self.axes.values() if axis.kind == kind]

    def stream(self, tensor: TensorAnatomy) -> str:
        """The layout of the residual stream in the block of a tensor: what the block's first norm or reader takes in."""
        block = [t for t in self.tensors.values() if t.block == tensor.block]
        for role in ("gain", "read"):
            for dimension in (d for t in block for d in t.dimensions if d.role == role):
                if any(self.axes[a].kind == "hidden" for a in dimension.layout.axes() if a in self.axes):
                    return str(dimension.layout)
        return "hidden"

    def __str__(self) -> str:
        from meristem.anatomy.table import as_text

        return as_text(self)
