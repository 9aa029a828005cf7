"""The parts of an anatomy, as data: axes, tensors with the role and the layout of each dimension, lists of blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from meristem.algebra import Layout
from meristem.anatomy.axis_ref import AxisRef
from meristem.anatomy.norms import NormFacts
from meristem.anatomy.roles import Role


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
        return AxisRef.parse(self.name).kind

    @property
    def scope(self) -> str:
        """ "encoder_", "decoder_", "moe_" ... or ""."""
        return AxisRef.parse(self.name).scope


@dataclass(frozen=True)
class Dimension:
    """One dimension of a tensor: its layout over axes, its role, and how that is known."""

    layout: Layout
    role: Role
    source: str  # the rule that explains it: "override", "convention of q_proj", "one axis" ...


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
    """A list of repeated blocks: tensors are named `{prefix}.{index}.…`, or `{prefix}.{index}` in a list of bare parameters."""

    axis: str
    prefix: str
    length: int


@dataclass(frozen=True)
class Structure:
    """What inference finds out about a network."""

    axes: Mapping[str, Axis]
    tensors: Mapping[str, TensorAnatomy]
    blocks: tuple[BlockList, ...]
    norms: Mapping[str, NormFacts]  # by module path
    unit_lists: Mapping[str, str]  # axes of lists with a module for each unit, by folded prefix
    measured: Mapping[str, str] = field(
        default_factory=dict
    )  # {axis: an operator outside of norms that measures its units}
    guessed: frozenset[str] = frozenset()  # tensors whose roles neither a type of module nor a forward pass tells
