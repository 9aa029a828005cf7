"""Maps of layers: which old layer each new one comes from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from meristem.anatomy import Anatomy
from meristem.anatomy.fields import read_field
from meristem.anatomy.huggingface import HuggingFaceBuilder
from meristem.anatomy.layer_lists import read_later
from meristem.errors import MeristemError
from meristem.growth.plans.layers import LayerMap, LayerSource, layer_order
from meristem.growth.plans.plan import GrowthPlan

Kind = frozenset[tuple[str, tuple[int, ...]]]  # names and shapes of a layer's tensors
Kinds = tuple[list[Kind], list[Kind]]  # of the old layers, and of the new ones


def new_layers(plans: Sequence[GrowthPlan]) -> dict[str, list[int]]:
    """{list of blocks: numbers of its new layers in the grown network}, after all these growths.

    New layers are silent layers, further copies of an old one, and copies of what an earlier growth added.
    """
    new: dict[str, list[bool]] = {}
    for plan in plans:
        for axis, layer_map in plan.layers.items():
            before = new.get(axis, [False] * plan.source.depths[axis])
            after: list[bool] = []
            taken: set[int] = set()
            for layer, source in zip(layer_map, layer_order(layer_map), strict=True):
                after.append(layer.silent or source in taken or before[source])
                taken |= set() if layer.silent else {source}
            new[axis] = after
    found = {axis: [place for place, is_new in enumerate(flags) if is_new] for axis, flags in new.items()}
    return {axis: places for axis, places in found.items() if places}


def spread(old: int, new: int) -> list[tuple[int, int]]:
    """(old layer, how many new layers it becomes), as evenly as whole numbers allow. 8 layers become 10 with
    one more after every fourth.
    """
    more = new % old
    return [(i, new // old + ((i + 1) * more // old - i * more // old)) for i in range(old)]


def in_order(text: str | Sequence[int], old: int, method: str) -> LayerMap:
    """Copies in the order of a list: "0-23,8-31" is SOLAR's depth up-scaling of 32 layers.

    Args:
        text: numbers and ranges separated by commas, with both ends included; or a list of numbers.
        old: the number of old layers.
        method: the name of the method, for the message.

    Raises:
        MeristemError: if it is anything else, or if a layer does not exist.
    """
    order: list[int] = []
    for part in str(text).split(",") if isinstance(text, str | int) else map(str, text):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(found.group(1)), int(found.group(2) or found.group(1))) if found else (0, -1)
        if last < first:
            raise MeristemError(f"{method}: layers are numbers and ranges such as 0-23,8-31; got {part.strip()!r}")
        if last >= old:
            raise MeristemError(f"{method}: asked for layer {last}, the network has {old} layers, 0-{old - 1}")
        order += range(first, last + 1)
    return tuple(LayerSource.copy(layer) for layer in order)


def fitting(anatomy: Anatomy, method: str, axis: str, make: Callable[[int, int], LayerMap], target: int) -> LayerMap:
    """`make(old, target)`, if every new place can hold the layer that it gets (hybrids need layers of certain
    kinds at certain places).

    First layers that fit no other place, such as the strided first block of a ResNet's stage, are not copied.
    The others grow, and a warning says so.

    Raises:
        MeristemError: if a layer does not fit. The message names the place and the nearest depths that work.
    """
    old = anatomy.depths[axis]
    layer_map = make(old, target)
    misfit = _misfit(anatomy, axis, layer_map)
    if misfit is None:
        return layer_map
    alone = _alone(anatomy, axis, target)
    if 0 < alone < old:
        behind = _behind(alone, make(old - alone, target - alone))
        known = all(layer.sources[0][0] >= alone for layer in behind[alone:])
        if len(behind) == target and known and _misfit(anatomy, axis, behind) is None:
            warnings.warn(
                f"{method}: the first {alone} of the {axis} differ{'s' if alone == 1 else ''} in shape from the others and "
                "stays alone; the others are copied",
                stacklevel=2,
            )
            return behind
    near = [n for n in sorted(range(old, 2 * target), key=lambda n: abs(n - target))[:16] if n != old]
    works = [str(n) for n in near if len(make(old, n)) == n and _misfit(anatomy, axis, make(old, n)) is None][:2]
    raise MeristemError(
        f"{method}: {anatomy.builder.model_type} needs another kind of layer at position {misfit} of {target} than layer "
        f"{layer_map[misfit].sources[0][0]} is; {' or '.join(works) + ' layers' if works else 'identity_blocks'} would work"
    )


def with_fitting_sources(anatomy: Anatomy, axis: str, layer_map: LayerMap) -> LayerMap:
    """The same map. A place that cannot hold its source (a ResNet's strided block in the middle of a stage)
    gets the nearest old layer that fits there.

    Raises:
        MeristemError: if no old layer fits.
    """
    kinds = layer_kinds(anatomy, axis, layer_map)
    if kinds is None:
        return layer_map
    old, new = kinds
    fitted: list[LayerSource] = []
    for place, layer in enumerate(layer_map):
        source = layer.sources[0][0]
        near = sorted((i for i, kind in enumerate(old) if new[place] <= kind), key=lambda i: abs(i - source))
        if not near:
            raise MeristemError(
                f"no block of the {axis} of {anatomy.builder.model_type} fits position {place} of {len(layer_map)}: they change the "
                "shape of the stream, and that position must keep it"
            )
        fitted.append(layer if near[0] == source else LayerSource.copy(near[0]))
    return tuple(fitted)


def _alone(anatomy: Anatomy, axis: str, target: int) -> int:
    """How many first layers are of a kind that does not fit the last place of a network of `target`
    layers.
    """
    kinds = layer_kinds(anatomy, axis, repeat_all(anatomy.depths[axis], target))
    if kinds is None:
        return 0
    old, new = kinds
    return next((i for i, kind in enumerate(old) if new[-1] <= kind), len(old))


def _behind(alone: int, layer_map: LayerMap) -> LayerMap:
    """The map of the layers after the first `alone`, which do not change."""
    moved = (
        replace(layer, sources=tuple((old + alone, weight) for old, weight in layer.sources)) for layer in layer_map
    )
    return (*(LayerSource.copy(i) for i in range(alone)), *moved)


def _misfit(anatomy: Anatomy, axis: str, layer_map: LayerMap) -> int | None:
    """The first new place with tensors that its source does not have, or has in another shape."""
    kinds = layer_kinds(anatomy, axis, layer_map)
    if kinds is None:
        return 0
    old, new = kinds
    return next((i for i, layer in enumerate(layer_map) if not new[i] <= old[layer.sources[0][0]]), None)


def repeat_each(old: int, new: int) -> LayerMap:
    """Interpolation: 0 0 1 1 2 2."""
    return tuple(LayerSource.copy(layer) for layer, times in spread(old, new) for _ in range(times))


def repeat_all(old: int, new: int) -> LayerMap:
    """Copies of the whole network: 0 1 2 0 1 2."""
    return tuple(LayerSource.copy(layer % old) for layer in range(new))


def repeat_last(old: int, new: int) -> LayerMap:
    """The last layers again on top: 0 1 2 1 2."""
    return repeat_span(old, 2 * old - new, old)


def repeat_middle(old: int, new: int) -> LayerMap:
    """The middle layers again in the middle: 0 1 2 1 2 3."""
    first = (2 * old - new) // 2
    return repeat_span(old, first, first + new - old)


def repeat_span(old: int, first: int, last: int) -> LayerMap:
    """Layers `first` to `last` (exclusive), followed by copies of themselves."""
    order = [*range(last), *range(first, last), *range(last, old)]
    return tuple(LayerSource.copy(layer) for layer in order)


def identity_layers(anatomy: Anatomy, axis: str, new: int) -> LayerMap:
    """Silent copies, which write nothing into the residual stream, among the layers of one list of blocks.

    They follow each layer, spread evenly. If later layers read results of a layer, its copies precede it, so
    that those read the old layer and not its copy (`read_later`). If the architecture needs other kinds of
    layers at those places (dense first, experts later; a bias in the last one), they go wherever they fit.

    Raises:
        MeristemError: if no arrangement gives every new place a layer of its kind.
    """
    old = anatomy.depths[axis]
    owners = _read_later(anatomy, axis)
    spread_out = _silent_copies(spread(old, new), owners)
    at_the_end = tuple(LayerSource.identity(min(i, old - 1), i >= old) for i in range(new))
    arrangements = (
        (at_the_end,)
        if anatomy.override.numbered
        else (spread_out, at_the_end, *_of_one_kind(anatomy, axis, new, owners))
    )
    for first in arrangements:
        kinds = layer_kinds(anatomy, axis, first)
        if kinds is None:
            continue
        if fit(kinds, first):
            return first
        matched = _matched(*kinds)
        if matched and fit(layer_kinds(anatomy, axis, matched), matched):
            return matched
    raise MeristemError(f"identity blocks: {anatomy.builder.model_type} has no position for {new - old} more {axis}")


def _read_later(anatomy: Anatomy, axis: str) -> frozenset[int]:
    """The layers of one list of blocks whose results later layers read."""
    builder = anatomy.builder
    if not isinstance(builder, HuggingFaceBuilder):
        return frozenset()
    owner = builder.fields.depth_paths[axis].rpartition(".")[0]
    return read_later(read_field(builder.config, owner) if owner else builder.config, anatomy.depths[axis])


def _silent_copies(times: Iterable[tuple[int, int]], in_front: frozenset[int]) -> LayerMap:
    """Each old layer as many times as asked. All but one are silent, after the old layer or, for those in
    `in_front`, before it.
    """
    return tuple(
        LayerSource.identity(layer, copy < count - 1 if layer in in_front else copy > 0)
        for layer, count in times
        for copy in range(count)
    )


def _of_one_kind(anatomy: Anatomy, axis: str, new: int, owners: frozenset[int]) -> Iterator[LayerMap]:
    """Silent copies after the layers of one kind only, for each kind (the layers of some kinds share
    weights).
    """
    old = anatomy.depths[axis]
    prefixes = [blocks.prefix for blocks in anatomy.blocks if blocks.axis == axis]
    kinds = _by_layer({tensor.name: tensor.shape for tensor in anatomy.tensors.values()}, prefixes, old)
    for kind in dict.fromkeys(kinds):
        members = [layer for layer in range(old) if kinds[layer] == kind]
        times = dict(zip(members, (t for _, t in spread(len(members), len(members) + new - old)), strict=True))
        yield _silent_copies(((i, times.get(i, 1)) for i in range(old)), owners)


def layer_kinds(anatomy: Anatomy, axis: str, layer_map: LayerMap) -> Kinds | None:
    """The tensors of each old layer, and of each layer of the network that `layer_map` asks for. None if that
    cannot be built.
    """
    builder = anatomy.builder
    order = layer_order(layer_map)
    try:
        target = builder.resized(builder.sizes, {**builder.depths, axis: len(order)}, {}, {axis: order})
        with torch.device("meta"):
            state = target.build(target.sizes, target.depths).state_dict()
    except (ValueError, RuntimeError, IndexError):
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    prefixes = [blocks.prefix for blocks in anatomy.blocks if blocks.axis == axis]
    ours = {tensor.name: tensor.shape for tensor in anatomy.tensors.values()}
    return _by_layer(ours, prefixes, anatomy.depths[axis]), _by_layer(shapes, prefixes, len(order))


def _by_layer(shapes: Mapping[str, tuple[int, ...]], prefixes: list[str], depth: int) -> list[Kind]:
    layers: list[dict[str, tuple[int, ...]]] = [{} for _ in range(depth)]
    for name, shape in shapes.items():
        for prefix in prefixes:
            if name.startswith(prefix + "."):
                index, _, rest = name[len(prefix) + 1 :].partition(".")
                layers[int(index)][f"{prefix}.*.{rest}"] = shape
    return [frozenset(layer.items()) for layer in layers]


def fit(kinds: Kinds | None, layer_map: LayerMap) -> bool:
    if kinds is None:
        return False
    old, new = kinds
    for kind, layer in zip(new, layer_map, strict=True):
        source = old[layer.sources[0][0]]
        if kind != source and not (layer.silent and kind <= source):
            return False
    return True


def _matched(old: list[Kind], new: list[Kind]) -> LayerMap | None:
    """The old layers in order, each at the first place of its kind, with silent layers of the right kind
    between them.
    """
    matched: list[LayerSource] = []
    waiting = 0
    for place, kind in enumerate(new):
        room = len(new) - place > len(old) - waiting or waiting == len(old)
        if waiting < len(old) and old[waiting] == kind:
            matched.append(LayerSource.copy(waiting))
            waiting += 1
        elif room and kind in old:
            nearest = min((i for i in range(len(old)) if old[i] == kind), key=lambda i: abs(i - waiting))
            matched.append(LayerSource.identity(nearest, True))
        else:
            return None
    return tuple(matched) if waiting == len(old) else None
