"""The effect of padding on the statistics of norms, and its compensation: the stream is scaled, or gains and
eps are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy, TensorAnatomy
from meristem.anatomy.axis_ref import kind_of
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.conventions import COMPARED_BY_TYPE, NORM_EPS_FIELDS
from meristem.anatomy.streamed import weights_of
from meristem.anatomy.trace import Inputs
from meristem.growth.plans.dimensions import sizes_after
from meristem.growth.structure.stream import Stream
from meristem.growth.structure.stream_watch import stream_of
from meristem.growth.widths.causes import of_width
from meristem.growth.widths.own_maps import OwnMaps, folds, own_maps


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


def obstacles(anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> dict[str, str]:
    """{axis: why its norms do not compute on the new units what they computed on the old ones}.

    Uniform copies keep any norm. Padding keeps norms that do not subtract the mean, and norms whose output is
    read and not added to what other norms measure (pre-norm). Uneven copies keep none.
    """
    found = {}
    for axis in sorted(axis for axis, axis_map in maps.items() if not axis_map.is_identity()):
        summed = [path for path in norms_over(anatomy, axis) if anatomy.norms[path].sums]
        if summed:
            found[axis] = f"{summed[0]} divides by the length of its input, which more units change"
    for axis in sorted(axis for axis in maps if kind_of(axis) == "hidden" and axis not in found):
        if cause := _computed_from(anatomy, axis, maps, model, inputs):
            found[axis] = cause
    uneven = {axis for axis, axis_map in maps.items() if not axis_map.is_uniform()} - set(found)
    for axis in sorted(uneven & set(anatomy.measured)):
        found[axis] = (
            f"{anatomy.measured[axis]} takes its units together, outside of any norm that Meristem knows; whole multiples are exact"
        )
    for axis in sorted(uneven & normed_axes(anatomy) - set(found)):
        over = norms_over(anatomy, axis)
        if maps[axis].norm_factor == 1:
            found[axis] = (
                f"units get different numbers of copies, which changes what {over[0] if over else 'a norm'} measures"
            )
        elif anatomy.traced and (
            mixed := [p for p in over if (g := anatomy.gain(p)) and str(g.dimensions[0].layout) != axis]
        ):
            found[axis] = f"{mixed[0]} measures it together with others, or in groups; whole multiples are exact"
        elif maps[axis].heard is maps[axis].write and any(anatomy.norms[path].centres for path in over):
            found[axis] = f"{over[0]} subtracts the mean, which new units of zero move"
        elif axis in COMPARED_BY_TYPE.get(anatomy.builder.model_type, ()):
            found[axis] = (
                "the two towers are compared by the angle of their outputs, which the mean that pads them changes; whole multiples "
                "are exact"
            )
        elif blocked := stream_of(model, anatomy, inputs).norms_in_the_stream(anatomy, axis):
            found[axis] = (
                f"{blocked[0]} subtracts the mean, and its output is measured again (post-norm), so no padding of it is "
                "silent; whole multiples are exact"
            )
        elif any(anatomy.norms[path].centres for path in over) and (
            gains := _gains_that_do_not_fold(anatomy, stream_of(model, anatomy, inputs), axis)
        ):
            found[axis] = (
                f"{gains[0]} multiplies each unit of what is added to the residual stream and comes from no weight alone, so the mean that pads it "
                "is not the mean of the products; whole multiples are exact"
            )
        elif unread := _read_by_no_weight(anatomy, stream_of(model, anatomy, inputs), over):
            found[axis] = (
                f"{unread[0]} has no gain, and no weight reads its output, so nothing can compensate for what it measures in "
                "more units"
            )
        elif foreign := stream_of(model, anatomy, inputs).unscalable(over):
            found[axis] = (
                f"{foreign[0]} measures something that comes through a nonlinearity or a table, which no weight scales; whole "
                "multiples are exact"
            )
    return found


def _computed_from(
    anatomy: Anatomy, axis: str, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs
) -> str | None:
    """What is added to the stream and computed from its width, so that no map of the stream gives that of the
    wider network.
    """
    known = anatomy.override.paired or any("frequencies" in layout for _, _, layout in anatomy.override.layouts)
    cause = None if known else of_width(model, anatomy.sizes[axis])
    cause = of_width(model, anatomy.sizes[axis], _wider(anatomy, maps)) if cause else None
    return cause if cause and stream_of(model, anatomy, inputs).foreign else None


def _wider(anatomy: Anatomy, maps: Mapping[str, AxisMap]) -> nn.Module | None:
    """What the class of the network builds in the new sizes, without values. None if it does not accept
    them.
    """
    builder = anatomy.builder
    try:
        target = builder.resized(sizes_after(anatomy, maps), builder.depths, {})
        with torch.device("meta"):
            return target.build(target.sizes, target.depths)
    except Exception:  # whatever a class raises about its config
        return None


def _gains_that_do_not_fold(anatomy: Anatomy, stream: Stream, axis: str) -> list[str]:
    return [gain for gain in stream.gains_in_the_stream(anatomy, axis) if not folds(anatomy, stream, gain, axis)]


def _read_by_no_weight(anatomy: Anatomy, stream: Stream, norms: list[str]) -> list[str]:
    """The norms without a gain whose output neither a weight reads nor another norm measures (those of single
    heads).
    """
    plain = [path for path in norms if anatomy.norms[path].gain is None and path in stream.measured]
    return [path for path in plain if not stream.is_taken(path)]


def norms_are_kept(anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
    """Whether every norm computes on the new units what it computed on the old ones."""
    return not obstacles(anatomy, maps, model, inputs)


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
