"""Entries of a config that follow the layers: lists with one entry for each layer, and lists of the numbers
of some layers. Also which layers have results that later layers read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from meristem.anatomy.conventions import LAST_LAYERS, LAYER_LISTS, LAYER_NUMBERS, LAYER_OUTPUTS, LAYER_SOURCES


def follow_layers(config: Any, order: Sequence[int], old: int, first: int = 0) -> None:
    """Rewrite the lists of `config` for new layers that take the places of old ones.

    Args:
        config: the part whose layers change. It is changed in place, except for its count of layers.
        order: for each new layer, the old layer whose place it takes.
        old: how many layers there were.
        first: the number that this class gives to what comes before the first layer.
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
    """The numbers of the layers whose results later layers read: keys and values (Gemma 3n, Mistral Large 4),
    or the positions that their indexer chose (GLM 5).

    Args:
        config: the part that has these layers.
        depth: how many layers there are.
    """
    modes = getattr(config, "kv_sharing_modes", None) or ()
    indexers = getattr(config, "indexer_types", None) or ()
    stores = {layer for layer, mode in enumerate(modes) if mode == "store"}
    chooses = {layer for layer in range(depth - 1) if tuple(indexers[layer : layer + 2]) == ("full", "shared")}
    return frozenset((stores | chooses) & set(range(depth)))


def _sources(value: Sequence[int], order: Sequence[int]) -> list[int]:
    """The layer whose keys and values each new layer reads: its own if the old layer read its own, and
    otherwise those of the last copy of the owner before it.
    """
    found = []
    for new, source in enumerate(order):
        owner = value[source]
        found.append(new if owner == source else next((i for i in range(new, -1, -1) if order[i] == owner), new))
    return found


def _behind(number: int, order: Sequence[int], old: int) -> int:
    """Where the hidden states are that followed `number` old layers: after the last new layer that was made
    from these.
    """
    if number < 0:
        return _behind(old + 1 + number, order, old) - len(order) - 1
    return max((new + 1 for new, source in enumerate(order) if source < number), default=0)


def _repeat_patterns(config: Any) -> None:
    """GPT-Neo derives its list of types from patterns and how often each is repeated. One pattern makes the
    list.
    """
    kinds = vars(config).get("attention_layers")
    if kinds and vars(config).get("attention_types"):
        shortest = next(n for n in range(1, len(kinds) + 1) if kinds == kinds[:n] * (len(kinds) // n))
        config.attention_types = [[kinds[:shortest], len(kinds) // shortest]]


def _rename_stages(config: Any, new: int, old: int) -> None:
    """A backbone of plain layers calls the hidden states after each layer a stage: stem, stage1, stage2
    ...
    """
    names = vars(config).get("stage_names")
    if names == ["stem", *(f"stage{i}" for i in range(1, old + 1))]:
        config.stage_names = ["stem", *(f"stage{i}" for i in range(1, new + 1))]
        indices = vars(config).get("_out_indices")
        if indices:
            config._out_features = [config.stage_names[i] for i in indices]
