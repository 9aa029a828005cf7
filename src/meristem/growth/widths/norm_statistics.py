"""The effect of padding on the statistics of norms, and its compensation: the stream is scaled, or gains and
eps are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy, TensorAnatomy
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.conventions import NORM_EPS_FIELDS
from meristem.anatomy.streamed import weights_of
from meristem.anatomy.trace import Inputs
from meristem.growth.structure.stream import Stream
from meristem.growth.structure.stream_watch import stream_of
from meristem.growth.widths.own_maps import OwnMaps, own_maps


@dataclass(frozen=True)
class Statistics:
    """Factors by tensor name, changes of the config, tensors whose new units have to stay zero, readers that
    get no noise, and tensors with their own maps.
    """

    scales: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, float] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    quiet: frozenset[str] = frozenset()
    own_maps: OwnMaps = field(default_factory=dict)


def normed_axes(anatomy: Anatomy) -> set[str]:
    """The axes that a norm measures. A batch norm measures each unit over the batch, and not units
    together.
    """
    gains = (
        d for t in anatomy.tensors.values() for d in t.dimensions if d.role == "gain" and measures_together(anatomy, t)
    )
    gained = {axis for dimension in gains for axis in anatomy.axes_of(dimension.layout) | dimension.layout.axes()}
    return gained.union(*(anatomy.axes_over(path) for path, facts in anatomy.norms.items() if facts.gain is None))


def measures_together(anatomy: Anatomy, gain: TensorAnatomy) -> bool:
    """Whether the norm of this gain measures several units together, unlike one with statistics for each unit
    (batch norm).
    """
    return f"{gain.name.rpartition('.')[0]}.running_var" not in anatomy.tensors


def norms_over(anatomy: Anatomy, axis: str) -> list[str]:
    """The paths of the norms that measure an axis."""
    return [p for p in anatomy.norms if axis in anatomy.axes_over(p)]


def keep_statistics(
    anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, scales_eps: bool, inputs: Inputs = None
) -> Statistics:
    """What `model` needs so that its norms measure under these maps what they did before.

    Args:
        anatomy: the anatomy of the network.
        maps: the map of each axis.
        model: the network.
        scales_eps: multiply gains by norm_factor and the eps of the config by its square (LEMON, appendix B),
            instead of the stream by 1 / norm_factor. The eps has to be in the config, and may not serve
            another axis.
        inputs: keyword arguments of forward. Random ones by default.
    """
    padded = {axis for axis, axis_map in maps.items() if axis_map.norm_factor != 1} & normed_axes(anatomy)
    if not padded:
        return Statistics()
    if scales_eps:
        return Statistics(_gain_scales(anatomy, maps), _eps_changes(anatomy, maps))
    stream = stream_of(model, anatomy, inputs)
    silent = frozenset(name for name in anatomy.tensors if stream.measures(anatomy, name) & padded)
    own = own_maps(anatomy, maps, stream, weights_of(model))
    quiet = _behind_no_norm(anatomy, maps, stream)
    return Statistics(stream.scales(anatomy, maps), silent=silent, quiet=quiet, own_maps=own)


def _behind_no_norm(anatomy: Anatomy, maps: Mapping[str, AxisMap], stream: Stream) -> frozenset[str]:
    """Readers of an axis that is padded with a mean and that reaches them without a norm. For them the pad is
    not silent, so noise on what reads it does not cancel.
    """
    padded = {axis for axis, axis_map in maps.items() if axis_map.heard is not axis_map.write}
    norms = {*anatomy.norms}
    found = frozenset(
        name
        for name, taken in stream.taken.items()
        if not taken or any(path.rpartition(".")[0] not in norms for path in taken)
        for tensor in (anatomy.tensors.get(name),)
        if tensor and any(d.role == "read" and anatomy.axes_of(d.layout) & padded for d in tensor.dimensions)
    )
    return found | _of_other_units(anatomy, maps, stream) if isinstance(anatomy.builder, FunctionBuilder) else found


def _of_other_units(anatomy: Anatomy, maps: Mapping[str, AxisMap], stream: Stream) -> frozenset[str]:
    """Readers of an axis that is padded with zeros, whose input was written along another axis (values of
    fewer heads, which are repeated for every query head). For them the pad is not silent.
    """
    zeros = {a for a, m in maps.items() if m.norm_factor != 1 and m.heard is m.write}
    norms, found = {*anatomy.norms}, set()
    for name, taken in stream.taken.items():
        tensor = anatomy.tensors.get(name)
        reads = {a for d in tensor.dimensions if d.role == "read" for a in d.layout.axes() & zeros} if tensor else set()
        makers = [
            anatomy.tensors[path] for path in taken if path.rpartition(".")[0] not in norms and path in anatomy.tensors
        ]
        if any(not maker.writes(axis) for axis in reads for maker in makers):
            found.add(name)
    return frozenset(found)


def _gain_scales(anatomy: Anatomy, maps: Mapping[str, AxisMap]) -> dict[str, float]:
    gains = [(t.name, d) for t in anatomy.tensors.values() for d in t.dimensions if d.role == "gain"]
    factors = {
        name: math.prod(maps[a].norm_factor for a in anatomy.axes_of(d.layout) if a in maps) for name, d in gains
    }
    return {name: factor for name, factor in factors.items() if factor != 1}


def _eps_changes(anatomy: Anatomy, maps: Mapping[str, AxisMap]) -> dict[str, float]:
    factor = math.prod(maps[axis.name].norm_factor for axis in anatomy.of_kind("hidden") if axis.name in maps)
    known = {name: anatomy.builder.fact(name) for name in NORM_EPS_FIELDS}
    return {name: eps * factor**2 for name, eps in known.items() if eps is not None and factor != 1}
