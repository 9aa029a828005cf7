"""Inference: build the architecture on the meta device in several sizes, and keep the layouts that explain
every shape.

One axis changes at a time. A layout fits a dimension if its size, a polynomial in the axis sizes, equals the
size of the dimension in every build. Overrides are tried first, then naming conventions, then every simple
layout. If two axes always have the same size (GPT-2's heads x head_dim and its hidden size), the convention
decides, and the certificate of a growth proves it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
from torch import nn

from meristem.algebra import Layout
from meristem.anatomy.axis_ref import is_part, kind_of, whole_of
from meristem.anatomy.builder import Builder, FunctionBuilder
from meristem.anatomy.candidates import Sizes, candidates
from meristem.anatomy.conventions import GROWING, PLAIN_NORMS
from meristem.anatomy.fields import is_numbered
from meristem.anatomy.groups import in_groups, in_pairs
from meristem.anatomy.heads import with_heads
from meristem.anatomy.huggingface import HuggingFaceBuilder
from meristem.anatomy.instances import constructor_of
from meristem.anatomy.norms import NormFacts, gain_of, is_per_unit, is_plain_norm, norm_facts, plain_shape
from meristem.anatomy.overrides import OVERRIDES, Override
from meristem.anatomy.roles import owner_and_parameter
from meristem.anatomy.shared_names import names_of_parameters
from meristem.anatomy.structure import Axis, BlockList, Dimension, Structure, TensorAnatomy
from meristem.anatomy.tracing import Traced, check_conflicts, is_guessed, seen_layout, told_roles
from meristem.anatomy.uninitialised import uninitialised
from meristem.anatomy.unit_lists import unit_lists
from meristem.errors import AnatomyError, MeristemError, UnexplainedError


def structure_of_model(
    model: nn.Module, overrides: Mapping[str, Override] | None = None
) -> tuple[Builder, Override, Structure]:
    """The builder, the override and the structure of a transformers model (see `Anatomy.of`)."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "model_type"):
        raise AnatomyError(
            f"{type(model).__name__} is not a transformers model; describe it with ms.Anatomy.infer(build, sizes) "
            "and pass that as anatomy="
        )
    model_type = getattr(config, "base_model_type", config.model_type)
    override = {**OVERRIDES, **(overrides or {})}.get(model_type, Override())
    override = replace(override, numbered=override.numbered or is_numbered(config))
    failures: list[AnatomyError] = []
    for builder in HuggingFaceBuilder(constructor_of(model), config).alternatives():
        try:
            return builder, override, infer(builder, override)
        except AnatomyError as error:
            failures.append(error)
    raise failures[0]


def infer(builder: Builder, override: Override, trace: Traced | None = None) -> Structure:
    """The structure of what `builder` builds, from shapes and, if a forward pass was watched, from what it
    showed. A layout from a pass has to have the size of the dimension in every build.

    Raises:
        AnatomyError: if a shape has no explanation, or if a tensor is both written and read.
    """
    base = _build(builder, builder.sizes, builder.depths)
    probes = [Probe.of(builder.sizes, base, True)]
    probes += [probe for sizes in builder.probes() for probe in _probed(builder, sizes, probes[0].shapes)]
    deeper = _deeper(builder)
    blocks = _find_blocks(builder, base, deeper)
    depths = {axis: Depth(builder.depths[axis], _shapes(model)) for axis, model in deeper.items()}
    ties = _ties(base)
    owners = dict(
        base.named_modules(remove_duplicate=False)
    )  # a module may go by several names, and its tensors with it
    trace = _by_all_names(trace, owners) if trace is not None else None
    tensors = {}
    for name, tensor in base.state_dict().items():
        block = _block_of(name, blocks)
        tensors[name] = TensorAnatomy(
            name,
            tuple(tensor.shape),
            tuple(_dimensions(name, tensor, owners, probes, override, {} if block else depths, trace)),
            block,
            ties.get(name),
        )
    if trace is not None:
        check_conflicts(trace, tensors)
    tensors = in_pairs(tensors) if override.paired else tensors
    tensors = in_groups(tensors, owners, _side_by_side(builder, override) | dict(trace.groups if trace else {}))
    _check_width(builder, tensors)
    axes = {axis: Axis(axis, size, builder.describe_axis(axis)) for axis, size in builder.sizes.items()}
    axes |= _parts(axes, tensors)
    lists = unit_lists([(probe.sizes, probe.shapes) for probe in probes])
    measured = trace.measured if trace is not None else {}
    norms = _norms(owners) | _plain_norms(owners, probes, override)
    return Structure(axes, tensors, blocks, norms, lists, measured, _guessed(tensors, owners, override, trace))


def _by_all_names(trace: Traced, owners: Mapping[str, nn.Module]) -> Traced:
    """The same for every name of a module that has several. A pass knows only the first."""
    paths: dict[int, list[str]] = {}
    for path, module in owners.items():
        paths.setdefault(id(module), []).append(path)
    others = {path: names[0] for names in paths.values() for path in names[1:]}

    def under_all(found: Mapping[str, Any]) -> dict[str, Any]:
        more = {
            f"{other}.{leaf}": value
            for name, value in found.items()
            for path, _, leaf in [name.rpartition(".")]
            for other, first in others.items()
            if first == path
        }
        return {**found, **more}

    return replace(trace, roles=under_all(trace.roles), layouts=under_all(trace.layouts))


def _probed(builder: Builder, sizes: Sizes, own: Mapping[str, tuple[int, ...]]) -> Iterator[Probe]:
    """The build in these sizes. Nothing if the architecture refuses them; the other probes are used then. If
    tensors of the present network are missing in it (equal widths need no projection), the same axes
    change further, too.
    """
    moved = {axis: size - builder.sizes[axis] for axis, size in sizes.items() if size != builder.sizes[axis]}
    further = {**sizes, **{axis: size + moved[axis] for axis, size in sizes.items() if axis in moved}}
    for tried in (sizes, further):
        try:
            model = _build(builder, tried, builder.depths)
            measured = builder.measured(tried) if isinstance(builder, FunctionBuilder) else tried
        except Exception:  # as an architecture says that sizes do not fit together, also by an assertion
            return
        probe = Probe.of(measured, model, any(kind_of(axis) in GROWING for axis in moved))
        yield probe
        if own.keys() <= probe.shapes.keys() or min(further.values()) < 1:
            return


def _guessed(
    tensors: Mapping[str, TensorAnatomy], owners: Mapping[str, nn.Module], override: Override, trace: Traced | None
) -> frozenset[str]:
    return frozenset(
        name
        for name, tensor in tensors.items()
        if is_guessed(name, owners[owner_and_parameter(name)[0]], len(tensor.shape), override, trace)
    )


def _check_width(builder: Builder, tensors: Mapping[str, TensorAnatomy]) -> None:
    """Raises MeristemError if no tensor has the width that the config names, so that nothing would grow."""
    used = {axis for t in tensors.values() for d in t.dimensions for axis in d.layout.axes()}
    widths = [axis for axis in builder.sizes if kind_of(axis) == "hidden"]
    if widths and not any(whole_of(axis) in widths if is_part(axis) else axis in widths for axis in used):
        named = ", ".join(dict.fromkeys(builder.describe_axis(axis) for axis in widths))
        raise MeristemError(
            f"{builder.model_type} has no width field that Meristem knows: {named} is in its config and shapes none of its tensors"
        )


def _side_by_side(builder: Builder, override: Override) -> dict[str, int]:
    """{"hidden": n} if the stream consists of parts, each a multiple of an n-th of it."""
    widths = builder.fact(override.concatenated) if override.concatenated else None
    widths = [widths] if isinstance(widths, int) else widths
    return {"hidden": builder.sizes["hidden"] // gcd(*widths)} if widths else {}


def _build(builder: Builder, sizes: Sizes, depths: Sizes) -> nn.Module:
    with torch.device("meta"):
        return uninitialised(lambda: builder.build(sizes, depths))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class Probe:
    """One build: its axis sizes, its shapes by name, whether it changed an axis that growth can change, and
    what its norms without weights measure, by path.
    """

    sizes: Sizes
    shapes: Mapping[str, tuple[int, ...]]
    essential: bool
    plain: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(sizes: Sizes, model: nn.Module, essential: bool) -> Probe:
        plain = {path: plain_shape(module) for path, module in model.named_modules() if is_plain_norm(module)}
        return Probe(with_heads(sizes), _shapes(model), essential, plain)


def _parts(axes: Mapping[str, Axis], tensors: Mapping[str, TensorAnatomy]) -> dict[str, Axis]:
    """The axes such as `over8_hidden` that a layout uses: an eighth of the hidden axis, with its own
    units.
    """
    used = {a for t in tensors.values() for d in t.dimensions for a in d.layout.axes() if is_part(a)}
    return {a: Axis(a, with_heads({n: x.size for n, x in axes.items()})[a], f"a part of {whole_of(a)}") for a in used}


@dataclass(frozen=True)
class Depth:
    """The length of a list of blocks, and the shapes of the network with one block more."""

    length: int
    deeper: Mapping[str, tuple[int, ...]]


def _deeper(builder: Builder) -> dict[str, nn.Module]:
    """{axis of depth: the network with one block more}, if the architecture allows one more."""
    found = {}
    for axis, depth in builder.depths.items():
        try:
            found[axis] = _build(builder, builder.sizes, {**builder.depths, axis: depth + 1})
        except (ValueError, RuntimeError, IndexError):
            continue
    return found


def _find_blocks(builder: Builder, base: nn.Module, deeper: Mapping[str, nn.Module]) -> tuple[BlockList, ...]:
    """The lists of modules or of bare parameters that get longer when a depth grows by one."""
    kinds = nn.ModuleList | nn.Sequential | nn.ParameterList
    lists = {name: len(m) for name, m in base.named_modules() if isinstance(m, kinds)}  # pyright: ignore[reportArgumentType]
    found = []
    for axis, model in deeper.items():
        depth, modules = builder.depths[axis], dict(model.named_modules())
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
    """{name: the name of the same parameter that counts as its own}: that of the embedding, or the first."""
    modules = dict(model.named_modules(remove_duplicate=False))
    tied = {}
    for names in names_of_parameters(model):
        embeddings = [n for n in names if isinstance(modules[n.rpartition(".")[0]], nn.Embedding)]
        own = (embeddings or names)[0]
        tied |= {name: own for name in names if name != own}
    return tied


def _norms(owners: Mapping[str, nn.Module]) -> dict[str, NormFacts]:
    """Facts about every norm with gains for each feature, measured once for each class."""
    by_class: dict[type, NormFacts] = {}
    found = {}
    for path, module in owners.items():
        gain = gain_of(module)
        if gain is not None and not is_per_unit(module) and module.get_parameter(gain).dim() == 1:
            if type(module) not in by_class:
                try:
                    by_class[type(module)] = norm_facts(module)
                except (
                    ValueError,
                    RuntimeError,
                    TypeError,
                    AttributeError,
                    IndexError,
                ):  # not a norm over the last dimension
                    continue
            found[path] = by_class[type(module)]
    return found


def _plain_norms(owners: Mapping[str, nn.Module], probes: Sequence[Probe], override: Override) -> dict[str, NormFacts]:
    """Facts about every norm without weights. What it measures is explained as a gain would be. If it accepts
    any size, its place decides (`PLAIN_NORMS`).
    """
    by_class: dict[tuple[type, tuple[int, ...]], NormFacts] = {}
    found = {}
    for path, shape in probes[0].plain.items():
        module = owners[path]
        key = (type(module), shape)
        if is_per_unit(module) or len(shape) > 1:
            continue
        if key not in by_class:
            try:
                by_class[key] = norm_facts(module)
            except (ValueError, RuntimeError, TypeError, AttributeError, IndexError):  # it takes something else, too
                continue
        layout = _measured_by(path, owners, probes, override)
        if layout is not None:
            found[path] = replace(by_class[key], layout=layout)
    return found


def _measured_by(
    path: str, owners: Mapping[str, nn.Module], probes: Sequence[Probe], override: Override
) -> Layout | None:
    if probes[0].plain[path]:
        measured = [(probe.sizes, probe.plain[path][-1]) for probe in probes if path in probe.plain]
        explained = _explain(f"{path}.weight", "out", measured, owners, override)
        return explained[1] if explained else None
    parts = path.split(".")
    around = [type(owners[".".join(parts[:i])]).__name__ for i in range(1, len(parts))]
    for kind, name, layout in PLAIN_NORMS:
        if any(re.search(kind, a) for a in around) and re.fullmatch(name, parts[-1]):
            known = Layout.parse(layout)
            return known if known.axes() <= probes[0].sizes.keys() else None
    return None


def _dimensions(
    name: str,
    tensor: torch.Tensor,
    owners: Mapping[str, nn.Module],
    probes: Sequence[Probe],
    override: Override,
    depths: Mapping[str, Depth],
    trace: Traced | None = None,
) -> Iterator[Dimension]:
    path, parameter = owner_and_parameter(name)
    found_roles = told_roles(name, owners[path], parameter, tensor.dim(), override, trace)
    if override.transposed and re.fullmatch(override.transposed, path) and parameter == "weight":
        found_roles = tuple(reversed(found_roles))
    for position, role in enumerate(found_roles):
        some = _some_of_the_layers(name, position, tensor.shape[position], depths, override)
        if some:
            yield Dimension(Layout(((some,),)), role, "override")
            continue
        side = "in" if role == "read" else "out"
        axis = _depth_axis(name, position, tensor.shape[position], depths)
        share = depths[axis].length if axis else 1
        for subset in (probes, [probe for probe in probes if probe.essential]):
            seen_in = [probe for probe in subset if name in probe.shapes]  # some sizes leave a module out
            measured = [(probe.sizes, probe.shapes[name][position] // share) for probe in seen_in]
            found = seen_layout(name, position, measured, trace) or _explain(name, side, measured, owners, override)
            if found:
                source, layout = found
                yield Dimension(Layout(((axis, layout),)) if axis else layout, role, source)
                break
        else:
            seen = ", ".join(dict.fromkeys(str(size) for _, size in measured))
            raise UnexplainedError(
                f"cannot explain dimension {position} of {name} {tuple(tensor.shape)}: over the probes it measures "
                f"{seen}, and no layout of the axes {', '.join(probes[0].sizes)} gives that; "
                "declare one with an Override(layouts=...) entry",
                name,
                position,
            )


def _some_of_the_layers(
    name: str, position: int, size: int, depths: Mapping[str, Depth], override: Override
) -> str | None:
    """The axis of a dimension outside the blocks that has an entry for all but the last block, or for the
    last few.
    """
    which = next((which for pattern, which in override.shares if re.fullmatch(pattern, name)), None)
    longer = (
        axis for axis, depth in depths.items() if name in depth.deeper and depth.deeper[name][position] == size + 1
    )
    axis = next(longer, None)
    return f"{which}_{axis}" if which and axis else None


def _depth_axis(name: str, position: int, size: int, depths: Mapping[str, Depth]) -> str | None:
    """The list of blocks for a dimension outside it that has a share for each block (one embedding for every
    layer).
    """
    for axis, depth in depths.items():
        if name in depth.deeper and depth.deeper[name][position] * depth.length == size * (depth.length + 1):
            return axis
    return None


def _explain(
    name: str,
    side: str,
    measured: Sequence[tuple[Sizes, int]],
    owners: Mapping[str, nn.Module],
    override: Override,
) -> tuple[str, Layout] | None:
    """How it is known, and the first layout that has the measured size in every build."""
    sizes, size = measured[0]
    if all(other == size for _, other in measured):
        return "the same size in every build", Layout.parse(size)
    for source, layout in candidates(name, side, size, owners, sizes, override):
        if all(axis in sizes or is_part(axis) for axis in layout.axes()) and all(
            layout.size(sizes) == size for sizes, size in measured
        ):
            return source, layout
    return next(_lines(measured), None)


def _lines(measured: Sequence[tuple[Sizes, int]]) -> Iterator[tuple[str, Layout]]:
    """Some units of one axis and a constant, computed from the sizes in the builds (features of a backbone
    and pooled ones).
    """
    sizes, size = measured[0]
    for axis in sizes:
        others = (((n - size), (other[axis] - sizes[axis])) for other, n in measured if other[axis] != sizes[axis])
        rise, run = next(others, (0, 1))
        count, rest = rise // run, size - rise // run * sizes[axis]
        layout = Layout(((count, axis), (rest,)))
        if count > 0 and rest > 0 and all(layout.size(other) == n for other, n in measured):
            yield "a multiple of an axis and a constant", layout
