"""Builds of a config on the meta device: whether a changed field changes shapes, and which sizes inference
should try.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from meristem.anatomy.builder import double_each
from meristem.anatomy.config_fields import ConfigFields
from meristem.anatomy.config_heads import ConfigHeads, head_scopes
from meristem.anatomy.heads import GROUP, HEAD_DIM, HEADS, KV_HEADS
from meristem.anatomy.uninitialised import uninitialised

KEPT = 4096  # answers of `Shapes.moves` that are remembered
_ANSWERS: dict[tuple[type, bytes, bytes], bool | None] = {}


@dataclass(frozen=True)
class Shapes:
    """The shapes of what `model_class(config)` builds, and how changed configs change them."""

    model_class: Any
    config: Any

    def of(self, config: Any) -> dict[str, torch.Size]:
        """{name in the state dict: shape}, built without memory."""
        with torch.device("meta"):
            model = uninitialised(lambda: self.model_class(config))
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    @cached_property
    def own(self) -> dict[str, torch.Size]:
        """The shapes of the network itself."""
        return self.of(self.config)

    def moves(self, config: Any, unless_built: bool = False) -> bool:
        """Whether this config builds a network of other shapes. `unless_built` is the answer if nothing can
        be built.

        A growth asks this several times about the same config, and each answer needs a build. So answers are
        cached.
        """
        key = self._key(config)
        answer = _ANSWERS[key] if key in _ANSWERS else self._built(config)
        if key is not None:
            if len(_ANSWERS) >= KEPT:
                _ANSWERS.clear()
            _ANSWERS[key] = answer
        return unless_built if answer is None else answer

    def _built(self, config: Any) -> bool | None:
        try:
            return self.of(config) != self.own
        except (ValueError, RuntimeError, TypeError, AttributeError, IndexError):
            return None

    def _key(self, config: Any) -> tuple[type, bytes, bytes] | None:
        """The class and all entries of both configs. None if they cannot be determined."""
        if not isinstance(self.model_class, type):  # a function of one instance, which must not be kept
            return None
        try:
            return self.model_class, self._own_entries, _entries(config)
        except Exception:  # a config whose entries cannot be read is built
            return None

    @cached_property
    def _own_entries(self) -> bytes:
        return _entries(self.config)


def _entries(config: Any) -> bytes:
    """A digest of all attributes of a config and of the configs in it.

    Raises:
        ValueError: if an attribute is written by its address, which another object may have later.
    """
    said = repr(_attributes(config))
    if " at 0x" in said:
        raise ValueError("an attribute has no repr of its own")
    return hashlib.sha256(said.encode()).digest()


def _attributes(config: Any) -> tuple[str, dict[str, Any]]:
    parts = {name: _attributes(one) if hasattr(one, "model_type") else one for name, one in vars(config).items()}
    return str(type(config)), parts


def with_derived_fields(fields: ConfigFields, shapes: Shapes) -> ConfigFields:
    """The fields, with the feed-forward size and the width of heads written down if the config derives them
    from the hidden size and the model reads them. They can then grow independently.
    """
    if "hidden" not in fields.paths:
        return fields
    hidden = fields.value("hidden")
    fields = _written_down(fields, shapes, "ffn", 4 * hidden)
    if "" in head_scopes(fields.paths):
        shared_out = fields.value("bottleneck_hidden") if "bottleneck_hidden" in fields.paths else hidden
        fields = _written_down(fields, shapes, HEAD_DIM, shared_out // fields.value(HEADS))
    return fields


def _written_down(fields: ConfigFields, shapes: Shapes, axis: str, guess: int) -> ConfigFields:
    if axis in fields.paths or guess < 1:
        return fields
    for path in fields.unset(axis):
        pinned, moved = fields.with_value(path, guess), fields.with_value(path, 2 * guess)
        if not shapes.moves(pinned, unless_built=True) and shapes.moves(moved):
            return replace(fields, config=pinned, paths={**fields.paths, axis: path})
    return fields


def probes(heads: ConfigHeads) -> list[dict[str, int]]:
    """Complete assignments of sizes that each double one axis. If heads divide an axis, both change
    together.
    """
    fixed = heads.fixed_axes()
    assignments = double_each({axis: size for axis, size in heads.sizes.items() if axis not in fixed})
    return [_fitted(heads, {**heads.sizes, **assignment}) for assignment in assignments]


def _fitted(heads: ConfigHeads, sizes: Mapping[str, int]) -> dict[str, int]:
    fitted = dict(sizes)
    inner = {s: sizes[f"{s}{KV_HEADS}"] * sizes[f"{s}{GROUP}"] * sizes[f"{s}{HEAD_DIM}"] for s in heads.splits}
    for scope, split in heads.splits.items():
        fitted[split.axis] = max(fitted[split.axis], int(inner[scope] / split.factor))
    for scope, split in heads.splits.items():
        fitted[f"{scope}{HEAD_DIM}"] *= int(split.factor * fitted[split.axis] / inner[scope])
    return fitted
