"""The structure of a network: its axes, and the axis along which each dimension of each tensor runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from meristem.algebra import Layout
from meristem.anatomy.builder import Builder, FunctionBuilder
from meristem.anatomy.heads import spelt_out
from meristem.anatomy.infer import infer, structure_of_model
from meristem.anatomy.norms import NormFacts
from meristem.anatomy.overrides import Override
from meristem.anatomy.roles import Role
from meristem.anatomy.structure import Axis, BlockList, Structure, TensorAnatomy
from meristem.anatomy.table import as_text
from meristem.anatomy.tracing import traced
from meristem.errors import UnexplainedError


@dataclass(frozen=True)
class Anatomy:
    """The axes, tensors and blocks of one network, as data. `Anatomy.of` makes it for transformers models,
    and `Anatomy.infer` for others.

    `print(anatomy)` shows it as a table.

    Attributes:
        builder: builds the network with other sizes and depths.
        axes: {name: axis}, with the size and the kind of each axis.
        tensors: {name: tensor}, with the layout and the role of each dimension.
        blocks: the lists of repeated blocks.
        override: facts about the model type that names and shapes do not show.
        norms: {module path: what is known about the norm}.
        unit_lists: {folded prefix: axis}, for lists of modules whose entries are units of an axis (see
            `unit_lists`).
        measured: {axis: operator outside of norms that measures its units}.
        guessed: tensors whose roles are guessed.
        traced: whether a forward pass was watched.
    """

    builder: Builder
    axes: Mapping[str, Axis]
    tensors: Mapping[str, TensorAnatomy]
    blocks: tuple[BlockList, ...]
    override: Override = field(default_factory=Override)
    norms: Mapping[str, NormFacts] = field(default_factory=dict)  # by module path
    unit_lists: Mapping[str, str] = field(default_factory=dict)  # {folded prefix: axis}, see `unit_lists.py`
    measured: Mapping[str, str] = field(default_factory=dict)  # {axis: operator}, see `Structure`
    guessed: frozenset[str] = frozenset()
    traced: bool = False  # whether a forward pass was watched

    @staticmethod
    def of(model: nn.Module, overrides: Mapping[str, Override] | None = None) -> Anatomy:
        """Infer the anatomy of a transformers model, from builds of its own architecture on the meta device.

        Args:
            model: a PreTrainedModel. Its weights are not used.
            overrides: further entries by model type. They take precedence over `anatomy.overrides.OVERRIDES`.

        Raises:
            AnatomyError: if the shape of a tensor follows no layout that Meristem knows. The message names
                the tensor.
        """
        builder, override, found = structure_of_model(model, overrides)
        return Anatomy(builder, found.axes, found.tensors, found.blocks, override, found.norms, found.unit_lists)

    @staticmethod
    def infer(
        build: Callable[..., nn.Module],
        sizes: Mapping[str, int],
        depths: Mapping[str, int] | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        overrides: Override | None = None,
        roles: Mapping[str, Sequence[Role]] | None = None,
    ) -> Anatomy:
        """Infer the anatomy of any network that `build(**sizes, **depths)` returns as an nn.Module.

        Args:
            build: a function that returns the network. It is called on the meta device with `sizes`, and with
                each size doubled.
            sizes: the size of each axis that may grow, by the name of the argument, for example {"channels":
                64}.
            depths: the number of repeated blocks, by the name of the argument.
            inputs: keyword arguments of forward. The network is watched on them at all these sizes. What is
                contracted, produced and concatenated shows the role and the layout of every dimension.
                Without them, `grow`, `shrink` and `fuse` watch it on their own inputs.
            overrides: facts that neither shapes nor a forward pass show (see `Override`).
            roles: {tensor name: the role of each dimension}, as in `Override`. The name is a regular
                expression that matches the whole name.

        Raises:
            AnatomyError: if the axes do not explain the shape of a tensor, or if a dimension is both written
                and read.
        """
        override = overrides or Override()
        declared = tuple((pattern, tuple(found)) for pattern, found in (roles or {}).items())
        return _of_function(
            FunctionBuilder(build, sizes, depths), replace(override, roles=declared + override.roles), inputs
        )

    def watched(self, inputs: Mapping[str, Any] | None) -> Anatomy:
        """This anatomy with what a forward pass shows, for a network outside transformers that was not
        watched yet.
        """
        if self.traced or inputs is None or not isinstance(self.builder, FunctionBuilder):
            return self
        return _of_function(self.builder.plain(), self.override, inputs)

    @property
    def sizes(self) -> dict[str, int]:
        """{axis: size}."""
        return {name: axis.size for name, axis in self.axes.items()}

    @property
    def depths(self) -> dict[str, int]:
        """{axis of depth: number of blocks}."""
        return {blocks.axis: blocks.length for blocks in self.blocks}

    def gain(self, norm: str) -> TensorAnatomy | None:
        """The gain of the norm at a module path, or None if it has none."""
        facts = self.norms.get(norm)
        return self.tensors.get(f"{norm}.{facts.gain if facts else 'weight'}")

    def axes_over(self, norm: str) -> set[str]:
        """The axes that the norm at a module path measures, by its gain or, if it has none, by its own
        shape.
        """
        gain, facts = self.gain(norm), self.norms.get(norm)
        layout = gain.dimensions[0].layout if gain is not None else facts.layout if facts is not None else None
        return self.axes_of(layout) | layout.axes() if layout is not None else set()

    def of_kind(self, kind: str) -> list[Axis]:
        """All axes of one kind, such as "hidden", "ffn" or "kv_heads"."""
        return [axis for axis in self.axes.values() if axis.kind == kind]

    def axes_of(self, layout: Layout) -> set[str]:
        """The axes of a layout. Query heads are resolved into key-value heads and groups if the anatomy
        counts those.
        """
        return spelt_out(layout.axes(), self.axes)

    def stream(self, tensor: TensorAnatomy) -> str:
        """The layout of the residual stream in the block of a tensor, which is the input of the block's first
        norm or reader.
        """
        block = [t for t in self.tensors.values() if t.block == tensor.block]
        for role in ("gain", "read"):
            for dimension in (d for t in block for d in t.dimensions if d.role == role):
                if any(self.axes[a].kind == "hidden" for a in dimension.layout.axes() if a in self.axes):
                    return str(dimension.layout)
        if isinstance(self.builder, FunctionBuilder):  # whose axes may have any names
            normed = (d for t in block for d in t.dimensions if d.role == "gain" and d.layout.axes() & set(self.axes))
            return next((str(d.layout) for d in normed), "hidden")
        return "hidden"

    def __str__(self) -> str:
        return as_text(self)


def _of_function(builder: FunctionBuilder, override: Override, inputs: Mapping[str, Any] | None) -> Anatomy:
    builder, found = _with_all_axes(builder, override, inputs)
    return Anatomy(
        builder,
        found.axes,
        found.tensors,
        found.blocks,
        override,
        found.norms,
        found.unit_lists,
        found.measured,
        found.guessed,
        traced=inputs is not None,
    )


MOST_FOLLOWING = 16  # axes whose size a function may work out by itself


def _with_all_axes(
    builder: FunctionBuilder, override: Override, inputs: Mapping[str, Any] | None
) -> tuple[FunctionBuilder, Structure]:
    """The structure of the networks that a function builds. If a size follows the arguments by a rule of its
    own (rounded up to a multiple, a share of another), it becomes an axis that follows.
    """
    trace = traced(builder, inputs) if inputs is not None else None
    for _ in range(MOST_FOLLOWING):
        try:
            return builder, infer(builder, override, trace)
        except UnexplainedError as error:
            builder = builder.with_following(error.tensor, error.place)
            trace = traced(builder, inputs) if inputs is not None else None
    return builder, infer(builder, override, trace)
