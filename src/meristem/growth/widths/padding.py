"""Padding: an axis under norms at any ratio, so that the norms compute what they did.

x' = [x, ..., x, pad]. Under RMSNorm the pad is zero. Under LayerNorm it is the mean of x, which does not
change the mean and adds nothing to the variance. In both cases the mean square is multiplied by norm_factor^2
= copies . d / d'. The compensation is in `norm_statistics` (Wang et al.: "LEMON: Lossless Model Expansion",
ICLR 2024, arXiv:2310.07999; for zero padding Gesmundo & Maile: "Composable Function-preserving Expansions",
2023, arXiv:2308.06103).
"""

from __future__ import annotations

import math

import torch

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import kind_of
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.heads import UNITS
from meristem.errors import MeristemError
from meristem.growth.widths.norm_statistics import normed_axes


def is_padded(anatomy: Anatomy, axis: str) -> bool:
    """Whether norms measure an axis, so that uneven copies of its units would change them. In a network that
    was watched this is known. Otherwise it is assumed for the hidden axis.
    """
    if not anatomy.traced:
        return kind_of(axis) == "hidden"
    return axis in anatomy.measured or any(axis in anatomy.axes_over(path) for path in anatomy.norms)


def follows(anatomy: Anatomy, axis: str) -> bool:
    """Whether the function that builds a network outside transformers computes the size of this axis
    itself.
    """
    return isinstance(anatomy.builder, FunctionBuilder) and axis in anatomy.builder.following


def lossless(anatomy: Anatomy, axis: str, target: int) -> AxisMap:
    """The map of an axis that keeps what norms measure at any ratio: padded if norms measure it, and
    otherwise copied in turn.
    """
    old = anatomy.sizes[axis]
    if is_padded(anatomy, axis):
        return padded_hidden(anatomy, axis, target, copies=target // old)
    if target % old and anatomy.axes[axis].kind in UNITS and axis in normed_axes(anatomy):
        return padded_heads(old, target)
    return AxisMap.duplicate(torch.arange(target) % old, old)


def padded_hidden(anatomy: Anatomy, axis: str, target: int, copies: int) -> AxisMap:
    """The hidden axis as `copies` copies and a silent pad.

    Raises:
        MeristemError: if norms that subtract the mean and norms that do not share the axis.
    """
    return pad(anatomy.sizes[axis], target, copies, mean=_norms_subtract_the_mean(anatomy, axis))


def pad(old: int, new: int, copies: int, mean: bool) -> AxisMap:
    """`copies` stacked identities. The remainder is silent: zero, or the mean of the old units."""
    if new == copies * old:
        return AxisMap.tile(old, copies)
    index, silent = torch.arange(new) % old, torch.arange(new) >= copies * old
    heard = UnitMap.select(index, old, (~silent).double())
    matrix = heard.matrix().clone()
    matrix[silent] = 1 / old
    return AxisMap(
        write=UnitMap(old, dense=matrix) if mean else heard,
        read=UnitMap.select(index, old, (~silent).double() / copies),
        gain=UnitMap.select(index, old),
        heard=heard,
        norm_factor=math.sqrt(copies * old / new),
    )


def padded_heads(old: int, target: int) -> AxisMap:
    """Heads that a norm measures together (OLMo 2). New ones are silent for the norm, and nothing reads their
    output.
    """
    index, kept = torch.arange(target) % old, (torch.arange(target) < old).double()
    places = UnitMap.select(index, old, kept)
    gain = UnitMap.select(index, old)
    return AxisMap(
        places, places, gain=gain, twins=False, fresh=torch.arange(target) >= old, norm_factor=math.sqrt(old / target)
    )


def _norms_subtract_the_mean(anatomy: Anatomy, axis: str) -> bool:
    over_axis = {facts.centres for path, facts in anatomy.norms.items() if axis in anatomy.axes_over(path)}
    if len(over_axis) > 1:
        raise MeristemError(
            f"{anatomy.builder.model_type} mixes LayerNorm and RMSNorm over {axis}: no padding suits both"
        )
    return over_axis == {True}
