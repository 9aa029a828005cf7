"""From a published config to the growth that leads there: every axis by its rule, and what of the config stays another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import is_part, kind_of
from meristem.anatomy.config_heads import Reading
from meristem.anatomy.heads import GROUP, KV_HEADS, UNITS, Heads
from meristem.anatomy.huggingface import HuggingFaceBuilder
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.lemon import LEMON
from meristem.growth.norm_statistics import obstacles
from meristem.growth.plan import GrowthPlan
from meristem.growth.silent_blocks import silence
from meristem.growth.targets import SIZED

# Config entries that say where a checkpoint comes from or how it is run, and nothing about its function.
BOOKKEEPING = (
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "return_dict", "id2label",
    "label2id", "task_specific_params", "finetuning_task", "problem_type", "_attn_implementation", "_attn_implementation_autoset",
    "output_attentions", "output_hidden_states", "_commit_hash", "initializer_range", "initializer_factor", "auto_map",
)  # fmt: skip
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Like:
    """How to grow to a target.

    Attributes:
        method: the growth.
        fields: {config entry: (the source's, the target's)} that differ, change no shape, and are no size.
        taken: whether the result has the target's.
    """

    method: LEMON
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
        target: a transformers config, or the path of a config.json or a model directory, or a hub name.
        anatomy: of the model, if known.
        take_target_fields: give the result all entries of the target's config, also those that change the function (rope
            theta, eps, activation); by default they stay the source's.
        options: further options of LEMON (noise, seed, norms).

    Raises:
        MeristemError: if the target is of another model type, smaller on some axis, or differs where no axis does.
    """
    anatomy = anatomy or Anatomy.of(model)
    builder = anatomy.builder
    if not isinstance(builder, HuggingFaceBuilder):
        raise MeristemError(f"like= wants a transformers model; {builder.model_type} has no config")
    config = read_target(target)
    if config.model_type != builder.model_type:
        raise MeristemError(
            f"the target is a {config.model_type}, the network a {builder.model_type}; a {builder.model_type} of any larger size "
            "would work"
        )
    aim = HuggingFaceBuilder(builder.model_class, config, _reading(builder))
    sizes, depths = _differences(anatomy, aim)
    _check_tokens(builder.config, config)
    method = LEMON(sizes=sizes or None, depths=depths or None, fields=_shaping(builder, aim, sizes) or None, **options)
    if "tie_word_embeddings" in (method.fields or {}):
        method = replace(method, tied="untie")
    reached = _reached(anatomy, sizes, depths, method.fields or {})
    fields = _other_fields(reached.config, aim.config)
    if take_target_fields:
        given = {name: theirs for name, (_, theirs) in fields.items()}
        method = replace(method, fields={**(method.fields or {}), **given} or None)
        reached = _reached(anatomy, sizes, depths, method.fields or {})
    _check_shapes(reached, aim)
    return Like(method, fields, take_target_fields)


def _shaping(builder: HuggingFaceBuilder, aim: HuggingFaceBuilder, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Entries that the result needs of the target's config: what is untied there, and how much of a larger head turns."""
    found: dict[str, Any] = {}
    if builder.fact("tie_word_embeddings") and aim.fact("tie_word_embeddings") is False:
        found["tie_word_embeddings"] = False
    share = "rope_parameters.partial_rotary_factor"
    if "head_dim" in sizes and builder.fact(share) != aim.fact(share):
        found[share] = aim.fact(share)
    return found


def _reading(builder: HuggingFaceBuilder) -> Reading:
    """How to read the target's heads: as the network's, their number by the field where there is one."""
    told = "kv_heads" in builder.fields.paths and not builder.reading.fixed
    return replace(builder.reading, kv_heads=1 if builder.reading.kv_heads == 1 and not told else None)


def read_target(target: Any) -> Any:
    """A transformers config from whatever names one. Raises MeristemError if nothing there is one."""
    if hasattr(target, "model_type"):
        return target
    from transformers import AutoConfig

    path = Path(str(target))
    try:
        if path.is_file():
            return AutoConfig.for_model(**json.loads(path.read_text()))
        return AutoConfig.from_pretrained(str(target), trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MeristemError(
            f"{target}: no config.json, model directory or hub name of a known model: {error}"
        ) from error


def rows(plan: GrowthPlan, model: nn.Module, inputs: Inputs = None) -> list[AxisRow]:
    """What a plan does to each axis, and where it cannot be exact."""
    blocked = obstacles(plan.source, plan.maps, model, inputs)
    found = []
    for axis in plan.source.axes.values():
        new = plan.target.sizes.get(axis.name, axis.size)
        if new != axis.size and not is_part(axis.name):
            why = blocked.get(axis.name) or blocked.get(Heads.of(axis.name).heads, "")
            found.append(AxisRow(axis.name, axis.size, new, _rule(axis.kind, plan, axis.name), why))
    why = silence(plan.source, plan.layers, model, inputs).obstacle
    for axis, layers in plan.layers.items():
        found.append(AxisRow(axis, plan.source.depths[axis], len(layers), "identity blocks, spread evenly", why))
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
    }.get(kind, "units copied")


def _differences(anatomy: Anatomy, aim: HuggingFaceBuilder) -> tuple[dict[str, int], dict[str, int]]:
    """The sizes and depths of the target that are not the network's."""
    sizes = {axis: size for axis, size in aim.sizes.items() if size != anatomy.sizes.get(axis)}
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


def _check_tokens(ours: Any, theirs: Any) -> None:
    """Raises MeristemError where the vocabulary and the special tokens differ: the ids then mean other words."""
    special = [
        name
        for name in TOKENS
        if isinstance(getattr(ours, name, None), int) and isinstance(getattr(theirs, name, None), int)
    ]
    moved = [name for name in special if getattr(ours, name) != getattr(theirs, name)]
    sizes = [getattr(config.get_text_config(), "vocab_size", None) for config in (ours, theirs)]
    if sizes[0] != sizes[1] and moved:
        told = ", ".join(f"{name} {getattr(ours, name)} -> {getattr(theirs, name)}" for name in moved)
        raise MeristemError(
            f"the target has another tokenizer (vocab_size {sizes[0]} -> {sizes[1]}, {told}), so its ids mean other words; a target "
            f"with vocab_size={sizes[0]} would work"
        )


def _reached(
    anatomy: Anatomy, sizes: Mapping[str, int], depths: Mapping[str, int], fields: Mapping[str, Any]
) -> HuggingFaceBuilder:
    builder = anatomy.builder
    assert isinstance(builder, HuggingFaceBuilder)
    return builder.resized({**anatomy.sizes, **sizes}, {**builder.depths, **depths}, fields)


def _other_fields(ours: Any, theirs: Any) -> dict[str, tuple[Any, Any]]:
    a, b = ours.to_dict(), theirs.to_dict()
    names = [name for name in {**a, **b} if name not in BOOKKEEPING and a.get(name) != b.get(name)]
    return {name: (a.get(name), b.get(name)) for name in names}


def _check_shapes(reached: HuggingFaceBuilder, aim: HuggingFaceBuilder) -> None:
    """Raises MeristemError where the result would have other tensors than the target."""
    ours, theirs = (_shapes(builder) for builder in (reached, aim))
    other = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
    if other:
        name = other[0]
        raise MeristemError(
            f"the target has other tensors than any growth of this network: {len(other)} differ, such as {name}, "
            f"{_told(ours.get(name))} against {_told(theirs.get(name))}; its config differs in "
            f"{', '.join(_other_fields(reached.config, aim.config)) or 'no entry'}"
        )


def _told(shape: Sequence[int] | None) -> str:
    return "missing" if shape is None else str(tuple(shape))


def _shapes(builder: HuggingFaceBuilder) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = builder.build(builder.sizes, builder.depths).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
