"""Config entries that follow the layers: lists with one entry for each, and lists of the numbers of some; and which layers leave
something for later ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from meristem.anatomy.conventions import LAST_LAYERS, LAYER_LISTS, LAYER_NUMBERS, LAYER_OUTPUTS, LAYER_SOURCES


def follow_layers(config: Any, order: Sequence[int], old: int, first: int = 0) -> None:
    """Rewrite the lists of `config` for new layers that take the places of old ones.

    Args:
        config: of the part whose layers change, changed in place; its own count of layers is not written.
        order: for each new layer, the old one whose place it takes.
        old: how many layers there were.
        first: the number by which the class at hand calls what stands before the first layer.
    """
    for name, value in list(vars(config).items()):
        if re.fullmatch(LAST_LAYERS, name) and isinstance(value, int):
            setattr(config, name, sum(source >= old - value for source in order) + max(0, value - old))
        if not isinstance(value, list | tuple):
            continue
        if re.fullmatch(LAYER_SOURCES, name) and len(value) == old:
            setattr(config, name, type(value)(_sources(value, order)))
        elif re.fullmatch(LAYER_NUMBERS, name):
            setattr(config, name, type(value)(new for new, source in enumerate(order) if source in value))
        elif re.fullmatch(LAYER_OUTPUTS, name) and all(isinstance(entry, int) for entry in value):
            setattr(config, name, type(value)(_behind(entry - first, order, old) + first for entry in value))
        elif re.fullmatch(LAYER_LISTS, name) and len(value) == old:
            setattr(config, name, type(value)(value[i] for i in order))
    _rename_stages(config, len(order), old)
    _repeat_patterns(config)


def read_later(config: Any, depth: int) -> frozenset[int]:
    """The numbers of the layers that leave something for later ones: keys and values (Gemma 3n, Mistral Large 4), or which positions
    their indexer has chosen (GLM 5).

    Args:
        config: of the part that has these layers.
        depth: how many there are.
    """
    modes = getattr(config, "kv_sharing_modes", None) or ()
    indexers = getattr(config, "indexer_types", None) or ()
    stores = {layer for layer, mode in enumerate(modes) if mode == "store"}
    chooses = {layer for layer in range(depth - 1) if tuple(indexers[layer : layer + 2]) == ("full", "shared")}
    return frozenset((stores | chooses) & set(range(depth)))


def _sources(value: Sequence[int], order: Sequence[int]) -> list[int]:
    """Whose keys and values each new layer reads: its own where the old one did, else those of the last copy of the owner before it."""
    found = []
    for new, source in enumerate(order):
        owner = value[source]
        found.append(new if owner == source else next((i for i in range(new, -1, -1) if order[i] == owner), new))
    return found


def _behind(number: int, order: Sequence[int], old: int) -> int:
    """Where the hidden states stand that stood behind `number` old layers: behind the last new layer that came of those."""
    if number < 0:
        return _behind(old + 1 + number, order, old) - len(order) - 1
    return max((new + 1 for new, source in enumerate(order) if source < number), default=0)


def _repeat_patterns(config: Any) -> None:
    """GPT-Neo derives its list of kinds from patterns and how often each is repeated: one pattern that gives the list."""
    kinds = vars(config).get("attention_layers")
    if kinds and vars(config).get("attention_types"):
        shortest = next(n for n in range(1, len(kinds) + 1) if kinds == kinds[:n] * (len(kinds) // n))
        config.attention_types = [[kinds[:shortest], len(kinds) // shortest]]


def _rename_stages(config: Any, new: int, old: int) -> None:
    """A backbone of plain layers calls what stands behind each layer a stage: stem, stage1, stage2 ..."""
    names = vars(config).get("stage_names")
    if names == ["stem", *(f"stage{i}" for i in range(1, old + 1))]:
        config.stage_names = ["stem", *(f"stage{i}" for i in range(1, new + 1))]
        indices = vars(config).get("_out_indices")
        if indices:
            config._out_features = [config.stage_names[i] for i in indices]
