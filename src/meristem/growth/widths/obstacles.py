"""Why a growth in width changes what norms compute: one function for each reason, asked in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import kind_of
from meristem.anatomy.conventions import COMPARED_BY_TYPE
from meristem.anatomy.trace import Inputs
from meristem.growth.plans.dimensions import sizes_after
from meristem.growth.structure.stream import Stream
from meristem.growth.structure.stream_watch import stream_of
from meristem.growth.widths.causes import of_width
from meristem.growth.widths.norm_statistics import normed_axes, norms_over
from meristem.growth.widths.own_maps import folds


def obstacles(anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> dict[str, str]:
    """{axis: why its norms do not compute on the new units what they computed on the old ones}.

    Uniform copies keep any norm. Padding keeps norms that do not subtract the mean, and norms whose output is
    read and not added to what other norms measure (pre-norm). Uneven copies keep none.
    """
    cases = {axis: _Case(anatomy, maps, model, inputs, axis) for axis in sorted(maps)}
    found = {axis: reason for axis, case in cases.items() if (reason := _summed(case) or _computed_from_width(case))}
    uneven = {axis for axis, axis_map in maps.items() if not axis_map.is_uniform()} - set(found)
    for axis in sorted(uneven & set(anatomy.measured)):
        found[axis] = (
            f"{anatomy.measured[axis]} takes its units together, outside of any norm that Meristem knows; whole multiples are exact"
        )
    for axis in sorted(uneven & normed_axes(anatomy) - set(found)):
        reasons = (reason(cases[axis]) for reason in REASONS)
        if said := next(filter(None, reasons), None):
            found[axis] = said
    return found


def norms_are_kept(anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
    """Whether every norm computes on the new units what it computed on the old ones."""
    return not obstacles(anatomy, maps, model, inputs)


@dataclass(frozen=True)
class _Case:
    """An axis that grows, and what the reasons ask about it."""

    anatomy: Anatomy
    maps: Mapping[str, AxisMap]
    model: nn.Module
    inputs: Inputs
    axis: str

    @property
    def map(self) -> AxisMap:
        return self.maps[self.axis]

    @cached_property
    def norms(self) -> list[str]:
        """The paths of those that measure the axis."""
        return norms_over(self.anatomy, self.axis)

    @property
    def centring(self) -> bool:
        """Whether one of them subtracts the mean."""
        return any(self.anatomy.norms[path].centres for path in self.norms)

    @property
    def stream(self) -> Stream:
        """It is remembered for a network and its inputs."""
        return stream_of(self.model, self.anatomy, self.inputs)


def _summed(case: _Case) -> str | None:
    summed = [path for path in case.norms if case.anatomy.norms[path].sums]
    if not summed or case.map.is_identity():
        return None
    return f"{summed[0]} divides by the length of its input, which more units change"


def _computed_from_width(case: _Case) -> str | None:
    """What is added to the stream and computed from its width, so that no map of the stream gives that of the
    wider network.
    """
    anatomy = case.anatomy
    if kind_of(case.axis) != "hidden":
        return None
    known = anatomy.override.paired or any("frequencies" in layout for _, _, layout in anatomy.override.layouts)
    cause = None if known else of_width(case.model, anatomy.sizes[case.axis])
    cause = of_width(case.model, anatomy.sizes[case.axis], _wider(anatomy, case.maps)) if cause else None
    return cause if cause and case.stream.foreign else None


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


def _copied_unevenly(case: _Case) -> str | None:
    if case.map.norm_factor != 1:
        return None
    norm = case.norms[0] if case.norms else "a norm"
    return f"units get different numbers of copies, which changes what {norm} measures"


def _measured_with_others(case: _Case) -> str | None:
    anatomy = case.anatomy
    if not anatomy.traced:
        return None
    gains = {path: gain for path in case.norms if (gain := anatomy.gain(path))}
    mixed = [path for path, gain in gains.items() if str(gain.dimensions[0].layout) != case.axis]
    return f"{mixed[0]} measures it together with others, or in groups; whole multiples are exact" if mixed else None


def _zeros_move_the_mean(case: _Case) -> str | None:
    if case.map.heard is not case.map.write or not case.centring:
        return None
    return f"{case.norms[0]} subtracts the mean, which new units of zero move"


def _compared_by_angle(case: _Case) -> str | None:
    if case.axis not in COMPARED_BY_TYPE.get(case.anatomy.builder.model_type, ()):
        return None
    return (
        "the two towers are compared by the angle of their outputs, which the mean that pads them changes; whole multiples "
        "are exact"
    )


def _measured_again(case: _Case) -> str | None:
    blocked = case.stream.norms_in_the_stream(case.anatomy, case.axis)
    if not blocked:
        return None
    return (
        f"{blocked[0]} subtracts the mean, and its output is measured again (post-norm), so no padding of it is "
        "silent; whole multiples are exact"
    )


def _gain_in_the_stream(case: _Case) -> str | None:
    """Gains that multiply what is added to the stream, and that fold into no weight."""
    if not case.centring:
        return None
    stream, anatomy = case.stream, case.anatomy
    gains = stream.gains_in_the_stream(anatomy, case.axis)
    left = [gain for gain in gains if not folds(anatomy, stream, gain, case.axis)]
    if not left:
        return None
    return (
        f"{left[0]} multiplies each unit of what is added to the residual stream and comes from no weight alone, so the mean that pads it "
        "is not the mean of the products; whole multiples are exact"
    )


def _read_by_no_weight(case: _Case) -> str | None:
    """Norms without a gain whose output neither a weight reads nor another norm measures (those of single
    heads).
    """
    stream = case.stream
    plain = [path for path in case.norms if case.anatomy.norms[path].gain is None and path in stream.measured]
    unread = [path for path in plain if not stream.is_taken(path)]
    if not unread:
        return None
    return (
        f"{unread[0]} has no gain, and no weight reads its output, so nothing can compensate for what it measures in "
        "more units"
    )


def _out_of_reach(case: _Case) -> str | None:
    foreign = case.stream.unscalable(case.norms)
    if not foreign:
        return None
    return (
        f"{foreign[0]} measures something that comes through a nonlinearity or a table, which no weight scales; whole "
        "multiples are exact"
    )


REASONS = (
    _copied_unevenly,
    _measured_with_others,
    _zeros_move_the_mean,
    _compared_by_angle,
    _measured_again,
    _gain_in_the_stream,
    _read_by_no_weight,
    _out_of_reach,
)
