"""The parts of an anatomy, as data: axes, tensors with the role and the layout of each dimension, and lists
of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from meristem.algebra import Layout
from meristem.anatomy.axis_ref import AxisRef
from meristem.anatomy.norms import NormFacts
from meristem.anatomy.roles import Role


def folded(name: str) -> str:
    """The name of a tensor with * for the numbers in it, which is the same for every layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


@dataclass(frozen=True)
class Axis:
    """A named axis.

    Args:
        name: its name, such as "hidden" or "decoder_ffn".
        size: the number of its units.
        source: the config field that sets the size, or how the size follows from others.
    """

    name: str
    size: int
    source: str

    @property
    def kind(self) -> str:
        """Its kind: "ffn" for "decoder_ffn"."""
        return AxisRef.parse(self.name).kind

    @property
    def scope(self) -> str:
        """The prefix of its name: "encoder_", "decoder_", "moe_" ... or ""."""
        return AxisRef.parse(self.name).scope


@dataclass(frozen=True)
class Dimension:
    """One dimension of a tensor.

    Args:
        layout: the axes along which it runs.
        role: "write", "read", "gain", "shift", "variance" or "fixed".
        source: the rule that explains it: "override", "convention of q_proj", "one axis" ...
    """

    layout: Layout
    role: Role
    source: str  # the rule that explains it: "override", "convention of q_proj", "one axis" ...


@dataclass(frozen=True)
class TensorAnatomy:
    """One entry of the state dict.

    Args:
        name: its name.
        shape: its shape.
        dimensions: its dimensions.
        block: (axis of depth, number of the block), if it belongs to a repeated block.
        tied_to: the name of the tensor whose memory it shares.
    """

    name: str
    shape: tuple[int, ...]
    dimensions: tuple[Dimension, ...]
    block: tuple[str, int] | None = None  # (axis of depth, index) when it belongs to a repeated block
    tied_to: str | None = None

    @property
    def reads(self) -> bool:
        """Whether one of its dimensions is read."""
        return any(d.role == "read" for d in self.dimensions)

    def writes(self, layout: str) -> bool:
        """Whether it writes units of exactly this layout, as the output projections of a block write the
        residual stream.
        """
        return any(d.role == "write" and str(d.layout) == layout for d in self.dimensions)


@dataclass(frozen=True)
class BlockList:
    """A list of repeated blocks. Its tensors have the names `{prefix}.{index}.…`, or `{prefix}.{index}` in a
    list of bare parameters.

    Args:
        axis: the axis of depth, such as "layers".
        prefix: the path of the list.
        length: the number of blocks.
    """

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
