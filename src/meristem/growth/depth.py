"""Maps of layers: which old layer each new one comes from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from meristem.anatomy import Anatomy
from meristem.errors import MeristemError
from meristem.growth.layers import LayerMap, LayerSource, layer_order
from meristem.growth.plan import GrowthPlan

Kind = frozenset[tuple[str, tuple[int, ...]]]  # names and shapes of a layer's tensors
Kinds = tuple[list[Kind], list[Kind]]  # of the old layers, and of the new ones


def new_layers(plans: Sequence[GrowthPlan]) -> dict[str, list[int]]:
    """{list of blocks: places in the grown network of the layers that are new}, after all these growths in turn.

    New are silent layers, further copies of an old one, and copies of what an earlier growth has added.
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
    """(old layer, how many new layers it becomes), as even as whole numbers allow: 8 layers become 10 behind every fourth."""
    more = new % old
    return [(i, new // old + ((i + 1) * more // old - i * more // old)) for i in range(old)]


def in_order(text: str | Sequence[int], old: int, method: str) -> LayerMap:
    """Copies in the order of a list: "0-23,8-31" is SOLAR's depth up-scaling of 32 layers.

    Args:
        text: numbers and ranges with both ends included, separated by commas; or the numbers.

    Raises:
        MeristemError: for anything else, or a layer that there is not.
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
    """`make(old, target)`, if every new place has room for the layer that comes there (hybrids want other kinds at other places).

    First layers that no other place has room for, such as the strided first block of a ResNet's stage, stay alone in front, and
    the others grow; a warning says so.

    Raises:
        MeristemError: naming the place and the nearest depths that work.
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
        f"{method}: {anatomy.builder.model_type} wants another kind of layer at place {misfit} of {target} than layer "
        f"{layer_map[misfit].sources[0][0]} is; {' or '.join(works) + ' layers' if works else 'identity_blocks'} would work"
    )


def with_fitting_sources(anatomy: Anatomy, axis: str, layer_map: LayerMap) -> LayerMap:
    """The same map, where a place has no room for its source (a ResNet's strided block in the middle of a stage) with the nearest
    old layer that fits there.

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
    """How many first layers are of a kind that the last place of a network of `target` layers has no room for."""
    kinds = layer_kinds(anatomy, axis, repeat_all(anatomy.depths[axis], target))
    if kinds is None:
        return 0
    old, new = kinds
    return next((i for i, kind in enumerate(old) if new[-1] <= kind), len(old))


def _behind(alone: int, layer_map: LayerMap) -> LayerMap:
    """The map of the layers behind the first `alone`, which stay as they are."""
    moved = (
        replace(layer, sources=tuple((old + alone, weight) for old, weight in layer.sources)) for layer in layer_map
    )
    return (*(LayerSource.copy(i) for i in range(alone)), *moved)


def _misfit(anatomy: Anatomy, axis: str, layer_map: LayerMap) -> int | None:
    """The first new place whose tensors its source has not, or not in that shape."""
    kinds = layer_kinds(anatomy, axis, layer_map)
    if kinds is None:
        return 0
    old, new = kinds
    return next((i for i, layer in enumerate(layer_map) if not new[i] <= old[layer.sources[0][0]]), None)


def repeat_each(old: int, new: int) -> LayerMap:
    """Interpolation: 0 0 1 1 2 2."""
    return tuple(LayerSource.copy(layer) for layer, times in spread(old, new) for _ in range(times))


def repeat_all(old: int, new: int) -> LayerMap:
    """Whole-model copies: 0 1 2 0 1 2."""
    return tuple(LayerSource.copy(layer % old) for layer in range(new))


def repeat_last(old: int, new: int) -> LayerMap:
    """The last layers once more on top: 0 1 2 1 2."""
    return repeat_span(old, 2 * old - new, old)


def repeat_middle(old: int, new: int) -> LayerMap:
    """The middle layers once more in the middle: 0 1 2 1 2 3."""
    first = (2 * old - new) // 2
    return repeat_span(old, first, first + new - old)


def repeat_span(old: int, first: int, last: int) -> LayerMap:
    """Layers `first` to `last` (exclusive) stand once more behind themselves."""
    order = [*range(last), *range(first, last), *range(last, old)]
    return tuple(LayerSource.copy(layer) for layer in order)


def identity_layers(anatomy: Anatomy, axis: str, new: int) -> LayerMap:
    """Silent copies, which write nothing into the residual stream, among the layers of one list of blocks.

    Behind each layer, evenly; where the architecture wants other kinds of layers at those places (dense first, experts
    later; a bias in the last one), wherever it has room for them.

    Raises:
        MeristemError: if no arrangement gives every new place a layer of its kind.
    """
    old = anatomy.depths[axis]
    spread_out = tuple(
        LayerSource.identity(layer, copy > 0) for layer, times in spread(old, new) for copy in range(times)
    )
    at_the_end = tuple(LayerSource.identity(min(i, old - 1), i >= old) for i in range(new))
    arrangements = (
        (at_the_end,) if anatomy.override.numbered else (spread_out, at_the_end, *_of_one_kind(anatomy, axis, new))
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
    raise MeristemError(f"identity blocks: {anatomy.builder.model_type} has no place for {new - old} more {axis}")


def _of_one_kind(anatomy: Anatomy, axis: str, new: int) -> Iterator[LayerMap]:
    """Silent copies behind the layers of one kind only, for each kind (some kinds share weights among all of theirs)."""
    old = anatomy.depths[axis]
    prefixes = [blocks.prefix for blocks in anatomy.blocks if blocks.axis == axis]
    kinds = _by_layer({tensor.name: tensor.shape for tensor in anatomy.tensors.values()}, prefixes, old)
    for kind in dict.fromkeys(kinds):
        members = [layer for layer in range(old) if kinds[layer] == kind]
        times = dict(zip(members, (t for _, t in spread(len(members), len(members) + new - old)), strict=True))
        yield tuple(LayerSource.identity(i, copy > 0) for i in range(old) for copy in range(times.get(i, 1)))


def layer_kinds(anatomy: Anatomy, axis: str, layer_map: LayerMap) -> Kinds | None:
    """What tensors each old layer has, and each layer of the network that `layer_map` asks for; None if that cannot be built."""
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
    """The old layers in order, each at the first place of its kind; silent layers of the right kind between them."""
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
