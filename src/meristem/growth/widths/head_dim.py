"""head_dim as an axis: old units go where the larger rotary table has their frequencies, and new units stay
silent.

Rotary positions rotate pair i of a head by position . f_i, with f_i = theta^(-2i / rotary_dim). The table of
m times as many units holds every old frequency, at place m . i, so an old pair goes there. Scaled tables are
compared number by number. Without rotary positions the places are free. Most networks divide scores by
sqrt(head_dim). So queries and keys are each multiplied by the fourth root of the change (values too, and
their readers divided), which any fused layout allows. New units of a query, and the readers of new values,
are zero. New keys and values may have any value.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy import Anatomy, Builder
from meristem.anatomy.axis_ref import is_part, whole_of
from meristem.anatomy.conventions import ATTENTION_CLASS
from meristem.errors import MeristemError
from meristem.growth.tensors.build import skeleton

TABLE = re.compile(r"(.*\.)?(\w+_)?(?<!original_)inv_freq$")
TURNS = ("rotate_half", "rotate_every_two")  # what transformers calls the function that pairs units
SCALES = (
    "scaling",
    "scale",
    "softmax_scale",
    "inv_norm_factor",
)  # what attention modules call the scale of their scores
CLOSE = 1e-5


def head_dim_map(
    anatomy: Anatomy, axis: str, sizes: Mapping[str, int], fields: Mapping[str, Any] | None = None
) -> AxisMap:
    """The map of `axis`, which is of the kind head_dim.

    Args:
        anatomy: the anatomy of the small network.
        axis: the axis.
        sizes: the sizes of all axes of the large network.
        fields: further entries of its config.

    Raises:
        MeristemError: if the table of the larger head lacks an old frequency of the rotary positions.
    """
    if is_part(axis):
        kept = next(t.name for t in anatomy.tensors.values() for d in t.dimensions if axis in d.layout.axes())
        raise MeristemError(
            f"{kept} holds values for only a part of the units of a head, so head_dim cannot grow; keep it at "
            f"{anatomy.sizes[whole_of(axis)]}"
        )
    small = anatomy.builder
    old, new = small.sizes[axis], sizes[axis]
    ours, theirs = _both(small, small.resized(sizes, small.depths, fields or {}), old, new)
    index = _places(anatomy, ours, theirs, old, new)
    factor = math.sqrt(
        _score_scale(ours, theirs, _usual_scale(anatomy, new / old))
    )  # on queries, and once more on keys
    carried = torch.zeros(new, dtype=torch.float64)
    carried[index] = 1.0
    source = torch.arange(new) % old
    source[index] = torch.arange(old)
    return AxisMap(
        UnitMap.select(source, old, carried * factor),
        UnitMap.select(source, old, carried / factor),
        gain=UnitMap.select(source, old),
        twins=False,
        fresh=carried == 0,
        norm_factor=factor * math.sqrt(old / new),
    )


def smaller_head_dim_map(
    anatomy: Anatomy, axis: str, sizes: Mapping[str, int], fields: Mapping[str, Any] | None = None, undo: bool = False
) -> AxisMap:
    """The inverse: the units of a head whose frequencies the smaller table has.

    Args:
        anatomy: the anatomy of the large network.
        axis: the axis.
        sizes: the sizes of all axes of the small network.
        fields: further entries of its config.
        undo: scale them, and what norms of single heads measure, to undo `head_dim_map`. Otherwise they do
            not change.

    Raises:
        MeristemError: if the table of the larger head lacks a frequency of the smaller one.
    """
    large = anatomy.builder
    old, new = large.sizes[axis], sizes[axis]
    theirs, ours = _both(large, large.resized(sizes, large.depths, fields or {}), old, new)
    try:
        index = _places(anatomy, ours, theirs, new, old)
    except MeristemError as error:
        divisor = max(part for part in range(1, old) if old % part == 0)
        works = "" if divisor == new else f"; a divisor works if positions are not scaled: {divisor}"
        raise MeristemError(
            f"the rotary table of head_dim {old} does not hold the frequencies of head_dim {new}, so {large.model_type} would rotate "
            f"its units by other ones; keep head_dim at {old}{works}"
        ) from error
    if not undo:
        return AxisMap.select(index, old)
    factor = math.sqrt(_score_scale(ours, theirs, _usual_scale(anatomy, old / new)))
    return AxisMap(
        UnitMap.select(index, old, torch.full((new,), 1 / factor, dtype=torch.float64)),
        UnitMap.select(index, old, torch.full((new,), factor, dtype=torch.float64)),
        gain=UnitMap.select(index, old),
        twins=False,
        norm_factor=math.sqrt(old / new) / factor,
    )


def _both(own: Builder, other: Builder, old: int, new: int) -> tuple[nn.Module, nn.Module]:
    """A network and the same with another head_dim, as skeletons that hold their rotary tables.

    Raises:
        MeristemError: for tables that change with the length of the text ("dynamic"; their tables of short
            texts may agree), or that the config scales by one number for each frequency ("longrope").
    """
    ours = _with_buffers(own)
    for module in ours.modules():
        stated = getattr(module, "rope_type", None)
        for scaling in stated.values() if isinstance(stated, Mapping) else [stated]:
            if isinstance(scaling, str) and ("dynamic" in scaling or scaling == "longrope"):
                raise MeristemError(_depends(own.model_type, scaling, old, new))
    return ours, _with_buffers(other)


def _depends(model_type: str, scaling: str, old: int, new: int) -> str:
    return (
        f"with head_dim {new}, {model_type} would compute another function: its positions are scaled by a rule that depends on "
        f"head_dim ({scaling}); keep it at {old}"
    )


def _with_buffers(builder: Builder) -> nn.Module:
    return skeleton(functools.partial(builder.build, builder.sizes, builder.depths))


def _usual_scale(anatomy: Anatomy, ratio: float) -> float:
    """The factor by which scores are divided in heads `ratio` times as wide, if no module states it."""
    return 1.0 if anatomy.override.unscaled else math.sqrt(ratio)


def _score_scale(ours: nn.Module, theirs: nn.Module, default: float) -> float:
    """How much more the large network divides scores than the small one, as the attention modules state."""
    modules = dict(theirs.named_modules())
    for name, module in ours.named_modules():
        for attribute in SCALES:
            value = vars(module).get(attribute)
            if isinstance(value, float) and re.search(ATTENTION_CLASS, type(module).__name__) and name in modules:
                return value / vars(modules[name])[attribute]
    return default


def _places(anatomy: Anatomy, ours: nn.Module, theirs: nn.Module, old: int, new: int) -> Tensor:
    """(old,) the place of each old unit of a head in the larger head."""
    tables, larger = ({n: b for n, b in m.named_buffers() if TABLE.fullmatch(n)} for m in (ours, theirs))
    found, used = None, ""
    for name, table in tables.items():
        if name not in larger or 2 * len(table) > old or table.dim() > 1:
            continue
        place = _frequencies(anatomy, table.double(), larger[name].double(), old, new)
        if found is not None and not torch.equal(found, place):
            raise MeristemError(
                f"{anatomy.builder.model_type} has several tables of rotary frequencies, and {old} -> {new} units of a head "
                f"would have to move in a different way for each; {2 * old} would work"
            )
        found, used = place, name
    if found is None:
        if any(hasattr(_code(ours), turn) for turn in TURNS):
            raise MeristemError(
                f"{anatomy.builder.model_type} rotates units by frequencies that are in no table, so head_dim cannot grow; "
                f"keep it at {old}"
            )
        return torch.arange(old)
    larger_halves = len(larger[used])
    if _turns_an_image(anatomy):
        found, larger_halves = _rows_then_columns(anatomy, found, larger_halves, old, new)
    rotary, larger_rotary = 2 * len(found), 2 * larger_halves
    pair = torch.arange(2) if _interleaves(ours) else torch.arange(2) * larger_halves
    step = 2 if _interleaves(ours) else 1
    turned = (found[:, None] * step + pair).flatten() if step == 2 else (found[None] + pair[:, None]).flatten()
    return torch.cat([turned, larger_rotary + torch.arange(old - rotary)])


def _turns_an_image(anatomy: Anatomy) -> bool:
    """Whether units rotate by the row and the column of a patch."""
    facts = [anatomy.builder.fact(name) for name in ("image_size", "patch_size")]
    return None not in facts and anatomy.builder.fact("text_config") is None


def _rows_then_columns(anatomy: Anatomy, found: Tensor, larger: int, old: int, new: int) -> tuple[Tensor, int]:
    """(places, length) of a table of frequencies for rows and then for columns: one table for both (DINOv3),
    or one that holds both (Pixtral).

    Raises:
        MeristemError: if a frequency of the rows belongs to the columns in the larger head.
    """
    if 4 * len(found) == old:
        return torch.cat([found, found + larger]), 2 * larger
    half = len(found) // 2
    if 2 * len(found) == old and bool((found[:half] >= larger // 2).any() or (found[half:] < larger // 2).any()):
        raise MeristemError(
            f"the rotary table of head_dim {new} rotates by the row what head_dim {old} rotates by the column, so "
            f"{anatomy.builder.model_type} would compute another function; keep it at {old}"
        )
    return found, larger


def _frequencies(anatomy: Anatomy, table: Tensor, larger: Tensor, old: int, new: int) -> Tensor:
    distance = (larger[None].log() - table[:, None].log()).abs()
    place = distance.argmin(1)
    if float(distance.min(1).values.max()) > CLOSE or len(set(place.tolist())) < len(place):
        if new % old == 0:
            scaling = anatomy.builder.fact("rope_parameters.rope_type") or "scaled"
            raise MeristemError(_depends(anatomy.builder.model_type, scaling, old, new))
        raise MeristemError(
            f"the rotary table of head_dim {new} does not hold the frequencies of head_dim {old}, so {anatomy.builder.model_type} "
            f"would compute another function; a whole multiple works unless the scaling of its positions depends on head_dim: "
            f"{old * max(2, round(new / old))} for unscaled ones"
        )
    return place


def _code(model: nn.Module):
    return sys.modules[type(model).__module__]


def _interleaves(model: nn.Module) -> bool:
    """Whether neighbours make a pair (GPT-J), and not the two halves of a head (Llama). The function that
    rotates them is tried.
    """
    turn = next((getattr(_code(model), name) for name in TURNS if hasattr(_code(model), name)), None)
    if turn is None:
        return False
    turned = turn(torch.arange(1.0, 9.0).view(1, 1, 1, 8)).flatten().abs()
    return bool(turned[0] == 2)
