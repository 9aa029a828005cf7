"""Tied heads and width constants: the factors that a growth has to correct, and where it corrects them.

A tied head reads with the writer's map. With n copies of each unit, its logits are n times too large. An
embedding scaled by sqrt(hidden_size) also grows by sqrt(n). Both are numbers, and a number before the head
can be multiplied into the gain of the last norm. The result is a stock model, tied as before. If no number is
enough (a gram matrix that is not a multiple of the identity), or if there is no norm before the head, the
head is untied instead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy, Builder, TensorAnatomy
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.constants import width_constants
from meristem.anatomy.trace import Inputs, norm_before_head
from meristem.growth.structure.stream_watch import stream_of


@dataclass(frozen=True)
class Repair:
    """Factors by tensor name, and whether the head has to be untied."""

    scales: Mapping[str, float] = field(default_factory=dict)
    untied: bool = False


def repair(
    anatomy: Anatomy,
    target: Builder,
    maps: Mapping[str, AxisMap],
    model: nn.Module,
    keep_tied: bool,
    statistics: Mapping[str, float] | None = None,
    inputs: Inputs = None,
) -> Repair:
    """What the width constants and a tied head of `model` need under these axis maps.

    Args:
        anatomy: the anatomy of the network.
        target: the builder of the large network.
        maps: the map of each axis.
        model: the network.
        keep_tied: keep a tied head tied, if that is possible.
        statistics: factors by tensor name that keep what norms measure. Those of the result include them.
        inputs: keyword arguments of forward. Random ones by default.
    """
    constants = width_constants(anatomy, target)
    statistics = statistics or {}
    scales = dict(statistics)
    for name, ratio in constants.items():
        tensor = anatomy.tensors[name]
        own = tensor.tied_to or name
        if not tensor.reads:
            scales |= {own: statistics.get(own, 1.0) / ratio, name: statistics.get(own, 1.0) / ratio}
        elif tensor.tied_to is None:
            scales[name] = statistics.get(name, 1.0) / ratio
    head = next((t for t in anatomy.tensors.values() if _reads_as_written(anatomy, t)), None)
    if head is None or head.tied_to is None:
        return Repair(scales)
    gram = _gram(head, maps)
    norm = norm_before_head(model, inputs, head.name.rpartition(".")[0]) if keep_tied and gram is not None else None
    if norm is not None and not (_feeds(anatomy, norm, head, maps) and _directly(anatomy, norm, head, model, inputs)):
        norm = None  # the last norm that ran belongs to something else, such as an image's patches
    if gram is None:
        factor = None
    else:
        factor = gram * constants.get(head.name, 1.0) * scales.get(head.tied_to, 1.0)
    if factor is not None and math.isclose(factor, 1) and keep_tied:
        return Repair(scales)
    gains = [name for name in anatomy.tensors if norm is not None and name.rpartition(".")[0] == norm]
    readers = linear_readers(anatomy, head, model, inputs) if factor is not None and not gains and keep_tied else []
    if factor is not None and readers:
        shared = {name: scales.get(name, 1.0) / factor for name in (head.tied_to, head.name)}
        return Repair({**scales, **shared, **{name: scales.get(name, 1.0) * factor for name in readers}})
    if factor is None or not gains:  # no norm, or one without a gain that could take the factor
        untied = target.resized(target.sizes, target.depths, {"tie_word_embeddings": False})  # may scale otherwise
        own = statistics.get(head.name, 1.0) / width_constants(anatomy, untied).get(head.name, 1.0)
        return Repair({**scales, head.name: own}, untied=True)
    scales |= {gain: scales.get(gain, 1.0) / factor for gain in gains}
    return Repair(
        scales | {name: scales.get(name, 1.0) * factor for name in other_readers(anatomy, gains, head, model, inputs)}
    )


def other_readers(
    anatomy: Anatomy, gains: Collection[str], head: TensorAnatomy, model: nn.Module, inputs: Inputs
) -> list[str]:
    """The matrices that read the output of the last norm, except the head (GPT-2's multiple choice). A factor
    of the norm's gains for the head would change what they read.
    """
    taken = stream_of(model, anatomy, inputs).taken
    own = {head.name, head.tied_to}
    return sorted(name for name, names in taken.items() if names & set(gains) and name not in own)


def tied_to_heads(anatomy: Anatomy) -> frozenset[str]:
    """Outside transformers, the embeddings with which a head reads, by both names. New columns have to stay
    zero, because they are both written and read.
    """
    if not isinstance(anatomy.builder, FunctionBuilder):
        return frozenset()
    heads = [tensor for tensor in anatomy.tensors.values() if _reads_as_written(anatomy, tensor)]
    return frozenset(name for head in heads for name in (head.name, head.tied_to or head.name))


def linear_readers(anatomy: Anatomy, head: TensorAnatomy, model: nn.Module, inputs: Inputs) -> list[str]:
    """Outside transformers, the weights that read the output of an embedding directly, if nothing else does.
    They can absorb a factor of an embedding that is tied to a head without a norm before it (a recurrent
    language model). Empty for others.
    """
    if inputs is None or not isinstance(anatomy.builder, FunctionBuilder):
        return []
    own = head.tied_to or head.name
    stream = stream_of(model, anatomy, inputs)
    takers = {name for name, taken in stream.taken.items() if own in taken and name != own}
    alone = all(stream.taken[name] == {own} and anatomy.tensors[name].reads for name in takers)
    of_head = head.name.rpartition(".")[0]  # its bias joins the output of the one matrix in either place
    others = [t for t in anatomy.tensors if t != own and t.rpartition(".")[0] != of_head]
    mixed = [t for t in others if stream.names.of(t) == stream.names.of(own)]
    return sorted(takers) if alone and not mixed and not stream.measures(anatomy, own) else []


def _reads_as_written(anatomy: Anatomy, tensor: TensorAnatomy) -> bool:
    """Whether a tensor reads along a dimension along which its owner writes, as a head that is tied to an
    embedding. Heads of several layers that share one reader (DETR's) all take its map, and need no repair.
    """
    if tensor.tied_to is None:
        return False
    owner = anatomy.tensors[tensor.tied_to]
    pairs = zip(tensor.dimensions, owner.dimensions, strict=True)
    return any(mine.role == "read" and its.role == "write" for mine, its in pairs)


def _directly(anatomy: Anatomy, norm: str, head: TensorAnatomy, model: nn.Module, inputs: Inputs) -> bool:
    """Whether the head of a network outside transformers reads the output of the norm itself, and not of
    something after it.
    """
    if not isinstance(anatomy.builder, FunctionBuilder):
        return True
    taken = stream_of(model, anatomy, inputs).taken.get(head.tied_to or head.name, set())
    return any(name.rpartition(".")[0] == norm for name in taken)


def _feeds(anatomy: Anatomy, norm: str, head: TensorAnatomy, maps: Mapping[str, AxisMap]) -> bool:
    """Whether the gains of a norm run along the growing axes that the head reads."""
    along = anatomy.axes_over(norm)
    return {axis for d in head.dimensions if d.role == "read" for axis in d.layout.axes()} & set(maps) <= along


def _gram(head: TensorAnatomy, maps: Mapping[str, AxisMap]) -> float | None:
    """The factor by which copies of the axis that the head reads multiply its output. None if it is not one
    number.
    """
    axes = next(d.layout.axes() for d in head.dimensions if d.role == "read")
    factor: float | None = 1.0
    for axis in axes & set(maps):
        gram = maps[axis].tied_factor()
        factor = None if gram is None or factor is None else factor * gram
    return factor
