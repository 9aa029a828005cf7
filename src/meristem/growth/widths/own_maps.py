"""Tensors that do not take the map of their axis, if the stream is padded with its mean.

Layer scale. A gain on a branch (DINOv2, CaiT, BEiT) makes the branch add g_i y_i to the stream for unit i,
with y = W x + b. A new unit should add the mean of these. It cannot if W, b and g are each padded with their
own mean. With the gain of new units g' = mean |g_k|, it does if their rows of W and b are

    sum_k  g_k / (d g')  W_k

so the writers get their own map, which depends on the gains. The old units do not change.

An axis that no norm measures (the pooler of a ViT, which a tanh follows) is padded with zeros, because a mean
would change it.

Readers without a norm before them (the query of SigLIP's pooling head) receive the mean that others do not,
so they get no noise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy import Anatomy, TensorAnatomy
from meristem.anatomy.conventions import COMPARED_BY_TYPE
from meristem.growth.structure.stream import Stream

OwnMaps = Mapping[str, Mapping[str, AxisMap]]  # by the tensor's name in the small network, then by axis


def own_maps(
    anatomy: Anatomy, maps: Mapping[str, AxisMap], stream: Stream, weights: Mapping[str, Tensor]
) -> dict[str, dict[str, AxisMap]]:
    """The maps of tensors that do not take the map of their axis: gains on a branch, what they multiply, and
    readers of the stream itself.
    """
    padded = {axis: m for axis, m in maps.items() if m.norm_factor != 1 and m.padded_with_mean}
    found = _layer_scale(anatomy, padded, stream, weights)
    for tensor in anatomy.tensors.values():
        read = {axis for d in tensor.dimensions if d.role == "read" for axis in d.layout.axes() & set(padded)}
        if read and any(name.rpartition(".")[0] not in stream.measured for name in stream.taken.get(tensor.name, ())):
            found.setdefault(tensor.name, {}).update({axis: replace(padded[axis], twins=False) for axis in read})
    compared = set(COMPARED_BY_TYPE.get(anatomy.builder.model_type, ()))
    for tensor in anatomy.tensors.values():
        kept = found.get(tensor.name, {})
        unheard = {axis for axis in set(padded) - compared if tensor.writes(axis) and axis not in kept}
        unheard = unheard if _is_unmeasured(anatomy, stream, tensor) else set()
        if unheard:
            found.setdefault(tensor.name, {}).update(
                {axis: replace(padded[axis], write=padded[axis].heard) for axis in unheard}
            )
    return found


def _is_unmeasured(anatomy: Anatomy, stream: Stream, tensor: TensorAnatomy) -> bool:
    """Whether the output of a matrix, or of the bias next to one, was seen and no norm measures it."""
    weight = re.sub(r"bias$", "weight", tensor.name)
    return weight in stream.taken and weight not in stream.gains and not stream.measures(anatomy, tensor.name)


def _layer_scale(
    anatomy: Anatomy, maps: Mapping[str, AxisMap], stream: Stream, weights: Mapping[str, Tensor]
) -> dict[str, dict[str, AxisMap]]:
    found: dict[str, dict[str, AxisMap]] = {}
    for axis in maps:
        for gain in stream.gains_in_the_stream(anatomy, axis):
            if not folds(anatomy, stream, gain, axis):
                continue
            values = weights[gain].detach().double().flatten().cpu()
            mean = float(values.abs().mean()) or 1.0
            found.setdefault(gain, {})[axis] = _padded(maps[axis], values.sign() / len(values))
            for writer in stream.taken[gain]:
                found.setdefault(writer, {})[axis] = _padded(maps[axis], values / (len(values) * mean))
    return found


def folds(anatomy: Anatomy, stream: Stream, gain: str, axis: str) -> bool:
    """Whether everything that a gain multiplies comes from tensors that write exactly this axis and nothing
    that a norm measures.
    """
    writers = [anatomy.tensors[name] for name in stream.taken.get(gain, ()) if name in anatomy.tensors]
    return (
        len(writers) == len(stream.taken.get(gain, ())) > 0
        and all(writer.writes(axis) and not stream.measures(anatomy, writer.name) for writer in writers)
        and anatomy.tensors[gain].writes(axis)
    )


def _padded(axis_map: AxisMap, row: Tensor) -> AxisMap:
    """The same map with `row` for what silent units carry."""
    matrix = axis_map.heard.matrix().clone()
    silent = axis_map.heard.sourceless()
    matrix[silent] = row.expand(int(silent.sum()), -1)
    return replace(axis_map, write=UnitMap(axis_map.old_size, dense=matrix))
