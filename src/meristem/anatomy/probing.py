"""Builds of a config on the meta device: whether a changed field moves shapes, and which sizes to try for inference."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Shapes:
    """The shapes of what `model_class(config)` builds, and what changed configs do to them."""

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
        """Whether this config builds a network of other shapes; `unless_built` is the answer if it builds none."""
        try:
            return self.of(config) != self.own
        except (ValueError, RuntimeError, TypeError, AttributeError, IndexError):
            return unless_built


def with_derived_fields(fields: ConfigFields, shapes: Shapes) -> ConfigFields:
    """The fields with the feed-forward size and the width of heads written down where the config leaves them to be derived
    from the hidden size and the model honours them, so that they can grow apart."""
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
    """Complete size assignments that each double one axis. Where heads share out an axis, it and they move together."""
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
