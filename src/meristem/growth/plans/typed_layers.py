"""Lists of blocks of several types (sliding and full attention, attention and state-space): the places of old
layers among new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meristem.anatomy import Anatomy
from meristem.anatomy.fields import read_field
from meristem.anatomy.huggingface import HuggingFaceBuilder
from meristem.errors import MeristemError
from meristem.growth.plans.depth import fit, layer_kinds
from meristem.growth.plans.layers import LayerMap, LayerSource

Fits = Callable[[int, int], bool]  # of a layer, at a place
TYPES = ("layer_types", "layers_block_type", "attention_layers")  # config lists with the kind of each layer


def types_of(builder: HuggingFaceBuilder) -> dict[str, list[str]]:
    """{axis of depth: the type of each layer}, for the lists of blocks whose config names types."""
    found = {}
    for axis, path in builder.fields.depth_paths.items():
        owner = path.rpartition(".")[0]
        if owner and not hasattr(read_field(builder.config, owner), "model_type"):
            continue  # a list with the depth of each stage
        for name in TYPES:
            types = read_field(builder.config, f"{owner}.{name}" if owner else name)
            if (
                isinstance(types, list | tuple)
                and len(types) == builder.depths[axis]
                and all(isinstance(t, str) for t in types)
            ):
                found.setdefault(axis, list(types))
    return found


def placed_by_type(old: Sequence[Any], new: Sequence[Any], fits: Fits | None = None) -> LayerMap | None:
    """Old layers in their order, each at a place of its own type, as evenly as that allows. The other places
    get silent copies of the nearest layer of the right type. None if there is no such arrangement.

    Args:
        old: the type of each layer of the small network.
        new: the type of each layer of the large network.
        fits: a function that says whether a silent copy of a layer can be at a place. By default, if the
            types are equal.
    """
    fits = fits or (lambda layer, place: old[layer] == new[place])
    places = _places(old, new)
    if places is None:
        return None
    stands = {place: layer for layer, place in enumerate(places)}
    found = []
    for place in range(len(new)):
        if place in stands:
            found.append(LayerSource.identity(stands[place], silent=False))
            continue
        alike = [layer for layer in range(len(old)) if fits(layer, place)]
        if not alike:
            return None
        found.append(LayerSource.identity(min(alike, key=lambda layer: abs(places[layer] - place)), silent=True))
    return tuple(found)


def _places(old: Sequence[Any], new: Sequence[Any]) -> list[int] | None:
    """The place of each old layer: of all arrangements, the one with the least distance from an even one."""
    ideal = [layer * len(new) / len(old) for layer in range(len(old))]
    best = [[math.inf] * (len(new) + 1) for _ in range(len(old) + 1)]  # of the first i layers on the first j places
    best[0] = [0.0] * (len(new) + 1)
    for i, kind in enumerate(old):
        for j, place_kind in enumerate(new):
            taken = best[i][j] + abs(j - ideal[i]) if kind == place_kind else math.inf
            best[i + 1][j + 1] = min(best[i + 1][j], taken)
    if math.isinf(best[-1][-1]):
        return None
    places, j = [], len(new)
    for i in range(len(old), 0, -1):
        while best[i][j - 1] == best[i][j]:
            j -= 1
        j -= 1
        places.append(j)
    return places[::-1]


def typed_layers(anatomy: Anatomy, axis: str, types: Sequence[str]) -> LayerMap:
    """The map from a list of blocks to layers of these types.

    Raises:
        MeristemError: if the network names no types, or if its layers do not fit among these in their order.
    """
    own = _own_types(anatomy)
    if axis not in own:
        raise MeristemError(
            f"{anatomy.builder.model_type} has no layer types for its {axis}; leave out layer_types for them"
        )
    found = map_to_types(anatomy, axis, types)
    if found is None:
        raise MeristemError(
            f"the {len(own[axis])} {axis} do not fit in their order among {len(types)} of the kinds asked for: the network has "
            f"{', '.join(own[axis])}"
        )
    return found


def map_to_types(anatomy: Anatomy, axis: str, types: Sequence[str]) -> LayerMap | None:
    """The same, or None if there is no such map. Layers of one type may still have different tensors
    (ModernBERT's first has no norm before its attention). So old layers go where exactly their tensors are
    needed, and silent ones where their tensors are enough.
    """
    old = _own_types(anatomy).get(axis)
    found = placed_by_type(old, types) if old is not None else None
    kinds = layer_kinds(anatomy, axis, found) if found is not None else None
    if old is None or found is None or kinds is None or fit(kinds, found):
        return found
    ours, theirs = (list(zip(names, tensors, strict=True)) for names, tensors in zip((old, types), kinds, strict=True))
    return placed_by_type(
        ours, theirs, lambda layer, place: old[layer] == types[place] and theirs[place][1] <= ours[layer][1]
    )


def _own_types(anatomy: Anatomy) -> Mapping[str, list[str]]:
    builder = anatomy.builder
    return types_of(builder) if isinstance(builder, HuggingFaceBuilder) else {}
