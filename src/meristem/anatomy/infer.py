"""Inference: build the architecture on the meta device at several sizes, and keep the layouts that explain every shape.

One axis moves at a time. A dimension has a layout if the layout's size, a polynomial in the axis sizes, equals the
dimension's size in every build. Overrides are tried first, then naming conventions, then every simple layout; where
two axes have always the same size (GPT-2's heads x head_dim and its hidden size) the convention is what tells them
apart, and the certificate of a growth is the proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import torch
from torch import nn

from meristem.algebra import Layout
from meristem.anatomy.anatomy import Anatomy, Axis, BlockList, Dimension, TensorAnatomy
from meristem.anatomy.builder import Builder
from meristem.anatomy.conventions import ATTENTION_CLASS, ATTENTION_LAYOUTS, DECODER_SCOPE, ENCODER_SCOPE
from meristem.anatomy.norms import NormFacts, is_norm, norm_facts
from meristem.anatomy.overrides import OVERRIDES, Override
from meristem.anatomy.roles import roles
from meristem.errors import AnatomyError, MeristemError

Sizes = Mapping[str, int]


def anatomy_of_model(model: nn.Module, overrides: Mapping[str, Override] | None = None) -> Anatomy:
    """See `Anatomy.of`."""
    from meristem.anatomy.huggingface import HuggingFaceBuilder

    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "model_type"):
        raise AnatomyError(
            f"{type(model).__name__} is no transformers model; describe it with ms.Anatomy.infer(build, sizes) "
            "and pass that as anatomy="
        )
    override = {**OVERRIDES, **(overrides or {})}.get(config.model_type, Override())
    failures: list[AnatomyError] = []
    for builder in HuggingFaceBuilder(type(model), config).kv_alternatives():
        try:
            return infer(builder, override)
        except AnatomyError as error:
            failures.append(error)
    raise failures[0]


def infer(builder: Builder, override: Override) -> Anatomy:
    """The anatomy of what `builder` builds. Raises AnatomyError where a shape has no explanation."""
    base = _build(builder, builder.sizes, builder.depths)
    probes = [(_with_heads(builder.sizes), _shapes(base))]
    for sizes in builder.probes():
        try:
            probes.append((_with_heads(sizes), _shapes(_build(builder, sizes, builder.depths))))
        except (ValueError, RuntimeError, MeristemError):
            continue  # the architecture refuses this combination; the other probes still speak
    blocks = _find_blocks(builder, base)
    ties = _ties(base)
    owners = dict(base.named_modules())
    tensors = {}
    for name, tensor in base.state_dict().items():
        tensors[name] = TensorAnatomy(
            name,
            tuple(tensor.shape),
            tuple(_dimensions(name, tensor, owners, probes, override)),
            type(owners[name.rpartition(".")[0]]).__name__,
            _block_of(name, blocks),
            ties.get(name),
        )
    axes = {axis: Axis(axis, size, builder.describe_axis(axis)) for axis, size in builder.sizes.items()}
    return Anatomy(builder, axes, tensors, blocks, override, _norms(owners))


def _build(builder: Builder, sizes: Sizes, depths: Sizes) -> nn.Module:
    with torch.device("meta"):
        return builder.build(sizes, depths)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _with_heads(sizes: Sizes) -> dict[str, int]:
    """`heads` is shorthand in layouts for `kv_heads group`."""
    heads = {
        axis.replace("kv_heads", "heads"): size * sizes[axis.replace("kv_heads", "group")]
        for axis, size in sizes.items()
        if axis.endswith("kv_heads")
    }
    return {**sizes, **heads}


def _find_blocks(builder: Builder, base: nn.Module) -> tuple[BlockList, ...]:
    """Which lists of modules get longer when a depth grows by one."""
    lists = {name: len(m) for name, m in base.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)}
    found = []
    for axis, depth in builder.depths.items():
        try:
            deeper = _build(builder, builder.sizes, {**builder.depths, axis: depth + 1})
        except (ValueError, RuntimeError, IndexError):
            continue
        modules = dict(deeper.named_modules())
        for name, length in lists.items():
            if length == depth and len(modules[name]) == depth + 1:  # type: ignore[arg-type]
                found.append(BlockList(axis, name, length))
    return tuple(found)


def _block_of(name: str, blocks: Sequence[BlockList]) -> tuple[str, int] | None:
    for block in blocks:
        if name.startswith(block.prefix + "."):
            return block.axis, int(name[len(block.prefix) + 1 :].split(".")[0])
    return None


def _ties(model: nn.Module) -> dict[str, str]:
    """{name: the first name of the same parameter}."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return tied


def _norms(owners: Mapping[str, nn.Module]) -> dict[str, NormFacts]:
    """Facts about every norm with per-feature gains, measured once for each class."""
    by_class: dict[type, NormFacts] = {}
    found = {}
    for path, module in owners.items():
        if is_norm(module) and module.get_parameter("weight").dim() == 1:
            if type(module) not in by_class:
                try:
                    by_class[type(module)] = norm_facts(module)
                except (ValueError, RuntimeError, TypeError):  # a norm over other dimensions than the last
                    continue
            found[path] = by_class[type(module)]
    return found


def _dimensions(
    name: str,
    tensor: torch.Tensor,
    owners: Mapping[str, nn.Module],
    probes: Sequence[tuple[Sizes, Mapping[str, tuple[int, ...]]]],
    override: Override,
) -> Iterator[Dimension]:
    path, _, parameter = name.rpartition(".")
    for position, role in enumerate(roles(owners[path], parameter, tensor.dim())):
        measured = [(sizes, shapes[name][position]) for sizes, shapes in probes]
        if len({size for _, size in measured}) == 1:
            yield Dimension(Layout.parse(measured[0][1]), role, "shape")
            continue
        candidates = _candidates(path, "in" if role == "read" else "out", owners, probes[0][0], override)
        for source, layout in candidates:
            if layout.axes() <= set(probes[0][0]) and all(layout.size(s) == size for s, size in measured):
                yield Dimension(layout, role, source)
                break
        else:
            seen = ", ".join(dict.fromkeys(str(size) for _, size in measured))
            raise AnatomyError(
                f"cannot explain dimension {position} of {name} {tuple(tensor.shape)}: over the probes it measures "
                f"{seen}, and no layout of the axes {', '.join(probes[0][0])} gives that; "
                "declare one with an Override(layouts=...) entry"
            )


def _candidates(
    path: str, side: str, owners: Mapping[str, nn.Module], sizes: Sizes, override: Override
) -> Iterator[tuple[str, Layout]]:
    for pattern, where, layout in override.layouts:
        if where == side and re.search(pattern, path):
            yield "override", Layout.parse(layout)
    scope = _scope(path, sizes)
    leaf = path.rpartition(".")[2]
    if _inside_attention(path, owners):
        for pattern, where, layouts in ATTENTION_LAYOUTS:
            if where == side and re.fullmatch(pattern, leaf):
                yield from (("convention", Layout.parse(_scoped(layout, scope))) for layout in layouts)
                return  # heads must not pass for plain units: a size that no head layout explains is an error
    yield from (("shape", layout) for layout in _simple_layouts(sizes))


def _inside_attention(path: str, owners: Mapping[str, nn.Module]) -> bool:
    parts = path.split(".")
    ancestors = (owners[".".join(parts[:i])] for i in range(1, len(parts)))
    return any(re.search(ATTENTION_CLASS, type(module).__name__) for module in ancestors)


def _scope(path: str, sizes: Sizes) -> str:
    parts = path.split(".")
    for scope in (ENCODER_SCOPE, DECODER_SCOPE):
        if scope in parts and f"{scope}_kv_heads" in sizes:
            return scope + "_"
    return ""


def _scoped(layout: str, scope: str) -> str:
    return re.sub(r"\b(kv_heads|heads|group|head_dim)\b", lambda m: scope + m.group(), layout) if scope else layout


def _simple_layouts(sizes: Sizes) -> Iterator[Layout]:
    """One axis, then multiples of one axis, then heads times head_dim, simplest first."""
    yield from (Layout(((axis,),)) for axis in sizes)
    yield from (Layout(((c, axis),)) for c, axis in product((2, 3, 4, 5, 6, 8), sizes))
    pairs = [(a, b) for a in sizes for b in sizes if a.endswith("heads") and b.endswith("head_dim")]
    yield from (Layout((pair,)) for pair in pairs)
    yield from (Layout(((2, *pair),)) for pair in pairs)
