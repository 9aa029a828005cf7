"""Which blocks of a list are built alike. A sampled proof runs at least one of each kind."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import nn

from meristem.growth.structure.changed import settings_of

Attributes = dict[tuple[str, str], Any]  # by the path of a module in its block, and the name


def kinds_of(blocks: Sequence[nn.Module]) -> list[Hashable]:
    """A value for each block, equal for blocks whose modules have the same classes, attributes, hooks and
    forwards. Numbers that count the blocks (`layer_idx`) do not tell blocks apart.
    """
    found = [_attributes(block) for block in blocks]
    counting = {
        key
        for key in found[0]
        if len(found) > 1
        and all(type(own.get(key)) is int for own in found)
        and len({own[key] - place for place, own in enumerate(found)}) == 1
    }
    return [frozenset((key, value) for key, value in own.items() if key not in counting) for own in found]


def _attributes(block: nn.Module) -> Attributes:
    """What each module of a block computes with besides its tensors."""
    found: Attributes = {}
    for path, module in block.named_modules():
        found[path, "class"] = type(module)
        found[path, "hooks"] = len(module._forward_hooks), len(module._forward_pre_hooks)
        found |= {(path, name): value for name, value in settings_of(module, bool, int, float, str).items()}
        for name, value in vars(module).items():
            if callable(value) and (name == "forward" or hasattr(value, "__qualname__")):
                found[path, name] = getattr(value, "__qualname__", id(module))
    return found
