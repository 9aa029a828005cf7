"""From a published config to the growth that reaches it: the rule of every axis, and the entries of the
config that stay different.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import is_part, kind_of
from meristem.anatomy.config_heads import Reading
from meristem.anatomy.fields import read_field
from meristem.anatomy.heads import GROUP, KV_HEADS, UNITS, Heads
from meristem.anatomy.huggingface import HuggingFaceBuilder
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.like.experts import (
    changes_experts,
    expert_rows,
    mixture_row,
    more_experts,
    upcycling,
    without_experts,
)
from meristem.growth.methods.lemon import LEMON
from meristem.growth.methods.method import Method
from meristem.growth.plans.depth import spread
from meristem.growth.plans.layers import layer_order
from meristem.growth.plans.mixtures import MIXTURES, Mixture
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.silent_blocks import silence
from meristem.growth.plans.typed_layers import map_to_types, types_of
from meristem.growth.sizes.target_config import aimed_at, check_tokens, other_fields, read_target
from meristem.growth.sizes.targets import SIZED
from meristem.growth.widths.obstacles import obstacles

OPTIONS = frozenset({"noise", "seed", "norms"})  # of LEMON, which no target says


@dataclass(frozen=True)
class Like:
    """How to grow to a target.

    Attributes:
        methods: the growths, in their order. One growth by LEMON, if no experts are made or copied.
        fields: {config entry: (value in the source, in the target)} for entries that differ, change no shape,
            and are not sizes.
        taken: whether the result has the values of the target.
    """

    methods: tuple[Method, ...]
    fields: Mapping[str, tuple[Any, Any]]
    taken: bool


@dataclass(frozen=True)
class AxisRow:
    """One axis of a growth to a target: its sizes, the rule, and why it is not exact ("" if it is)."""

    axis: str
    old: int
    new: int
    rule: str
    obstacle: str


def like(
    model: nn.Module, target: Any, anatomy: Anatomy | None = None, *, take_target_fields: bool = False, **options: Any
) -> Like:
    """The growth of `model` to the shape of `target`.

    Args:
        model: the network.
        target: a transformers config, or what names one (see `target_config.read_target`).
        anatomy: the anatomy of the model, if it is known.
        take_target_fields: give the result all entries of the target's config, also those that change the
            function (rope theta, eps, activation). By default it keeps those of the source.
        options: further options of LEMON (noise, seed, norms).

    Raises:
        MeristemError: if the target is of another model type (and not a mixture of experts of the network's
            family), if it is smaller on an axis, or if it differs where no axis does.
    """
    anatomy = anatomy or Anatomy.of(model)
    builder = anatomy.builder
    if not isinstance(builder, HuggingFaceBuilder):
        raise MeristemError(f"like= needs a transformers model; {builder.model_type} has no config")
    config = read_target(target)
    unknown = set(options) - OPTIONS
    if unknown:
        raise MeristemError(f"like= takes no {min(unknown)}; its options are {', '.join(sorted(OPTIONS))}")
    row = mixture_row(builder, config)
    if config.model_type != builder.model_type and row is None:
        mixture = f", or a {MIXTURES[builder.model_type].model_type}," if builder.model_type in MIXTURES else ""
        raise MeristemError(
            f"the target is a {config.model_type}, the network a {builder.model_type}; a {builder.model_type} of any larger size"
            f"{mixture} would work"
        )
    found = _same_class(anatomy, config, take_target_fields, options) if row is None else None
    found = _with_untied_head(found, anatomy, model, config) if found is not None else None
    found = found or _mixture(anatomy, row, config, take_target_fields, options)
    if not found.methods:
        told = ", ".join(found.fields)
        raise MeristemError(
            "the target has the network's own sizes, so there is nothing to grow"
            + (f"; its config differs in {told}, which --take-target-fields takes over" if told else "")
        )
    return found


def _same_class(anatomy: Anatomy, config: Any, take_target_fields: bool, options: Mapping[str, Any]) -> Like:
    """The growth to a target of the network's own class. No methods if the sizes are equal."""
    builder = anatomy.builder
    assert isinstance(builder, HuggingFaceBuilder)
    aim = aimed_at(builder, config, reading=_reading(builder))
    experts = more_experts(anatomy, aim, take_target_fields, options.get("seed", 0))
    sizes, depths = _differences(anatomy, aim)
    check_tokens(builder.config, config)
    method = LEMON(sizes=sizes or None, depths=depths or None, fields=_shaping(builder, aim, sizes) or None, **options)
    method = replace(method, layer_types=_kinds(anatomy, aim, depths) or None)
    if "tie_word_embeddings" in (method.fields or {}):
        method = replace(method, tied="untie")
    also: dict[str, Any] = {}
    if experts is not None:
        counted = {axis.name: aim.sizes[axis.name] for axis in anatomy.of_kind("experts") if axis.name in aim.sizes}
        sizes, also = {**sizes, **counted}, experts.top_k(anatomy)
    orders = {axis: layer_order(layers) for axis, layers in method.layer_maps(anatomy).items()}
    reached = _reached(anatomy, sizes, depths, {**(method.fields or {}), **also}, orders)
    fields = other_fields(reached.config, aim.config)
    if take_target_fields:
        given = {name: theirs for name, (_, theirs) in fields.items()}
        method = replace(method, fields={**(method.fields or {}), **given} or None)
        reached = _reached(anatomy, sizes, depths, {**(method.fields or {}), **also}, orders)
    _check_shapes(reached, aim)
    grows = bool(method.sizes or depths or method.fields)
    return Like((*([method] if grows else []), *([experts] if experts else [])), fields, take_target_fields)


def _with_untied_head(found: Like, anatomy: Anatomy, model: nn.Module, config: Any) -> Like:
    """The same with an untied head, where the target ties it and copies of the stream do not allow that
    (there is no norm with a gain before it).
    """
    tied = any(tensor.tied_to is not None for tensor in anatomy.tensors.values())
    wider = [m for m in found.methods if isinstance(m, LEMON) and m.tied == "keep" and m.sizes]
    if not (tied and wider and read_field(config, "tie_word_embeddings") and wider[0].plan(anatomy, model).untied):
        return found
    return replace(found, fields={**found.fields, "tie_word_embeddings": (False, True)})


def _mixture(
    anatomy: Anatomy, row: Mixture | None, config: Any, take_target_fields: bool, options: Mapping[str, Any]
) -> Like:
    """The growth of a dense network to a mixture: first to the mixture's sizes, then to its experts."""
    builder = anatomy.builder
    assert isinstance(builder, HuggingFaceBuilder)
    assert row is not None
    dense, upcycle = upcycling(builder, row, config)
    upcycle = replace(upcycle, seed=options.get("seed", 0))
    found = _same_class(anatomy, dense, take_target_fields, options)
    lemon = next(iter(found.methods), None)
    reached = builder
    if isinstance(lemon, LEMON):
        reached = _reached(anatomy, lemon.sizes or {}, lemon.depths or {}, lemon.fields or {})
    made = upcycle.mixture(reached)
    aim = aimed_at(made, config, reading=made.reading)
    left = other_fields(made.config, aim.config)
    if take_target_fields:
        upcycle = replace(upcycle, fields={name: theirs for name, (_, theirs) in left.items()} or None)
        made = upcycle.mixture(reached)
    _check_shapes(made, aim)
    return Like((*found.methods, upcycle), {**found.fields, **left}, take_target_fields)


def _kinds(anatomy: Anatomy, aim: HuggingFaceBuilder, depths: Mapping[str, int]) -> dict[str, list[str]]:
    """{list of blocks that grows: the target's types of layers}, if the network's layers fit among them in
    their order.
    """
    theirs = types_of(aim)
    both = {axis: theirs[axis] for axis in depths if axis in theirs}
    return {axis: types for axis, types in both.items() if map_to_types(anatomy, axis, types) is not None}


def _shaping(builder: HuggingFaceBuilder, aim: HuggingFaceBuilder, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Entries of the target's config that the result needs: what is untied there, and the share of a larger
    head that rotates.
    """
    found: dict[str, Any] = {}
    if builder.fact("tie_word_embeddings") and aim.fact("tie_word_embeddings") is False:
        found["tie_word_embeddings"] = False
    share = "rope_parameters.partial_rotary_factor"
    if "head_dim" in sizes and builder.fact(share) != aim.fact(share):
        found[share] = aim.fact(share)
    return found


def _reading(builder: HuggingFaceBuilder) -> Reading:
    """How to read the target's heads: as the network's. Their number comes from the field if there is one
    that the class reads (Falcon's multi-query attention has one key-value head whatever its field says).
    """
    told = "kv_heads" in builder.fields.paths and not builder.reading.fixed and builder.reads_kv_heads
    return replace(builder.reading, kv_heads=1 if builder.reading.kv_heads == 1 and not told else None)


def rows(plan: GrowthPlan, model: nn.Module, inputs: Inputs = None) -> list[AxisRow]:
    """What a plan does to each axis, and where it cannot be exact."""
    if changes_experts(plan):
        return [AxisRow(*row) for row in expert_rows(plan)]
    blocked = obstacles(plan.source, plan.maps, model, inputs)
    found = []
    for axis in plan.source.axes.values():
        new = plan.target.sizes.get(axis.name, axis.size)
        if new != axis.size and not is_part(axis.name):
            why = blocked.get(axis.name) or blocked.get(Heads.of(axis.name).heads, "")
            found.append(AxisRow(axis.name, axis.size, new, _rule(axis.kind, plan, axis.name), why))
    why = silence(plan.source, plan.layers, model, inputs).obstacle
    for axis, layers in plan.layers.items():
        even = [layer for layer, times in spread(plan.source.depths[axis], len(layers)) for _ in range(times)]
        evenly = layer_order(layers) == even
        rule = (
            "identity blocks, spread evenly"
            if evenly
            else "identity blocks, where the target's kinds of layers need them"
        )
        found.append(AxisRow(axis, plan.source.depths[axis], len(layers), rule, why))
    return found


def _rule(kind: str, plan: GrowthPlan, axis: str) -> str:
    if kind == "hidden":
        padded = axis in plan.maps and plan.maps[axis].norm_factor != 1
        return "padded, the stream scaled" if padded else "copied"
    if kind in UNITS:
        regrouped = Heads.of(axis).heads in plan.maps
        silent = axis in plan.maps and plan.maps[axis].norm_factor != 1
        return "regrouped" if regrouped else "silent heads, since norms measure all" if silent else "heads copied"
    return {
        "head_dim": "old units where their frequencies are, new ones silent",
        "vocab": "new tokens take the mean of the old rows",
        "positions": "new positions continue the last",
        "projection": "new units of the common space are zero",
    }.get(kind, "units copied")


def _differences(anatomy: Anatomy, aim: HuggingFaceBuilder) -> tuple[dict[str, int], dict[str, int]]:
    """The sizes and depths of the target that differ from those of the network."""
    other = {axis: size for axis, size in aim.sizes.items() if size != anatomy.sizes.get(axis)}
    sizes = without_experts(anatomy, other)
    lengths = {axis: aim.depths[axis] for axis in anatomy.depths if axis in aim.depths}
    depths = {axis: length for axis, length in lengths.items() if length != anatomy.depths[axis]}
    fixed = [a for a in sizes if a not in anatomy.axes or anatomy.axes[a].kind not in SIZED]
    if fixed:
        told = ", ".join(f"{a} {anatomy.sizes.get(a, 'missing')} -> {sizes[a]}" for a in fixed)
        raise MeristemError(
            f"no rule grows these axes to the target's: {told}; the network's own sizes of them would work"
        )
    heads = {a for a in sizes if anatomy.axes[a].kind in (KV_HEADS, GROUP)}
    smaller = {a: (anatomy.sizes[a], s) for a, s in sizes.items() if s < anatomy.sizes[a] and a not in heads}
    smaller |= {a: (anatomy.depths[a], n) for a, n in depths.items() if n < anatomy.depths[a]}
    smaller |= _fewer_heads(anatomy, aim)
    if smaller:
        told = ", ".join(f"{axis} {old} -> {new}" for axis, (old, new) in smaller.items())
        works = ", ".join(f"{axis} {old}" for axis, (old, _) in smaller.items())
        raise MeristemError(f"the target is smaller on some axes: {told}. The nearest target that works has {works}")
    return sizes, depths


def _fewer_heads(anatomy: Anatomy, aim: HuggingFaceBuilder) -> dict[str, tuple[int, int]]:
    found = {}
    for kv_heads in [a for a in aim.sizes if kind_of(a) == KV_HEADS and a in anatomy.sizes]:
        group, heads = Heads.of(kv_heads).group, Heads.of(kv_heads).heads
        old, new = (s[kv_heads] * s[group] for s in (anatomy.sizes, aim.sizes))
        if new < old:
            found[heads] = (old, new)
        if aim.sizes[kv_heads] < anatomy.sizes[kv_heads]:
            found[kv_heads] = (anatomy.sizes[kv_heads], aim.sizes[kv_heads])
    return found


def _reached(
    anatomy: Anatomy,
    sizes: Mapping[str, int],
    depths: Mapping[str, int],
    fields: Mapping[str, Any],
    orders: Mapping[str, list[int]] | None = None,
) -> HuggingFaceBuilder:
    builder = anatomy.builder
    assert isinstance(builder, HuggingFaceBuilder)
    return builder.resized({**anatomy.sizes, **sizes}, {**builder.depths, **depths}, fields, orders)


def _check_shapes(reached: HuggingFaceBuilder, aim: HuggingFaceBuilder) -> None:
    """Raises MeristemError if the result would have other tensors than the target."""
    ours, theirs = (_shapes(builder) for builder in (reached, aim))
    other = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
    if other:
        name = other[0]
        raise MeristemError(
            f"no growth of this network has the target's tensors: {len(other)} differ, such as {name}, "
            f"{_told(ours.get(name))} against {_told(theirs.get(name))}; its config differs in "
            f"{', '.join(other_fields(reached.config, aim.config) or other_fields(reached.config, aim.config, ()))}"
        )


def _told(shape: Sequence[int] | None) -> str:
    return "missing" if shape is None else str(tuple(shape))


def _shapes(builder: HuggingFaceBuilder) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = builder.build(builder.sizes, builder.depths).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
