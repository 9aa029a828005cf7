"""transformers models as builders: axis sizes <-> config fields."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from torch import nn

from meristem.anatomy.config_fields import ConfigFields
from meristem.anatomy.config_heads import ConfigHeads, Reading
from meristem.anatomy.conventions import OUTPUTS_FROM_ONE
from meristem.anatomy.fields import read_field, write_field
from meristem.anatomy.heads import HEADS, KV_HEADS, counts_heads
from meristem.anatomy.probing import Shapes, probes, with_derived_fields
from meristem.anatomy.validity import check_config


class HuggingFaceBuilder:
    """Builds `model_class(config)` in other sizes.

    Args:
        model_class: a PreTrainedModel class, or another function that makes a network from a config
            (`instances.constructor_of`).
        config: its config. It does not change.
        reading: how to read its heads. By default as its fields say.

    Raises:
        MeristemError: if the config has no width that Meristem knows.
    """

    def __init__(self, model_class: Any, config: Any, reading: Reading | None = None) -> None:
        self.model_class, self.reading = model_class, reading or Reading()
        shapes = Shapes(model_class, copy.deepcopy(config))
        self.fields = with_derived_fields(ConfigFields.of(shapes.config, shapes.moves), shapes)
        self.heads = ConfigHeads(self.fields, self.reading, self.model_type)

    @property
    def config(self) -> Any:
        """The config, with the sizes written into it that it leaves to be derived."""
        return self.fields.config

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.heads.sizes

    @property
    def depths(self) -> Mapping[str, int]:
        return self.fields.depths

    @property
    def splits(self) -> Mapping[str, tuple[str, Fraction]]:
        """As in `Builder`."""
        return {scope: (split.axis, split.factor) for scope, split in self.heads.splits.items()}

    @property
    def model_type(self) -> str:
        return self.config.model_type

    @cached_property
    def reads_kv_heads(self) -> bool:
        """Whether the class reads the field of key-value heads. Falcon's multi-query attention does not."""
        path, heads = self.fields.paths.get(KV_HEADS), self.fields.value(HEADS) if HEADS in self.fields.paths else 0
        if path is None or not heads:
            return False
        other = heads if self.fields.value(KV_HEADS) != heads else 1
        return Shapes(self.model_class, self.config).moves(self.fields.with_value(path, other))

    def alternatives(self) -> Iterable[HuggingFaceBuilder]:
        """Builders that read the heads differently: key-value heads by the field, all, or one; hidden_size
        divided or not.
        """
        return (
            self if reading == self.reading else HuggingFaceBuilder(self.model_class, self.config, reading)
            for reading in self.heads.readings()
        )

    def config_for(
        self,
        sizes: Mapping[str, int],
        depths: Mapping[str, int],
        orders: Mapping[str, list[int]] | None = None,
    ) -> Any:
        """The config of the network in these sizes.

        Args:
            sizes: the size of each axis.
            depths: the number of layers of each axis of depth.
            orders: as in `Builder.resized`.

        Raises:
            MeristemError: if the heads do not divide the requested widths, or if the architecture ties sizes
                that should differ.
        """
        config = self._config_of(sizes)
        for scope in self.heads.scopes:
            self.heads.check(scope, sizes)
            self.heads.write(config, scope, sizes)
        first = 1 if re.fullmatch(OUTPUTS_FROM_ONE, getattr(self.model_class, "__name__", "")) else 0
        for axis, depth in depths.items():
            self.fields.write_depth(config, axis, depth, (orders or {}).get(axis), first)
        return config

    def _config_of(self, sizes: Mapping[str, int]) -> Any:
        """A copy of the config with the sizes that have fields, except heads."""
        config = copy.deepcopy(self.config)
        for axis in (axis for axis in sizes if axis in self.fields.paths and not counts_heads(axis)):
            self.fields.write(config, axis, self.sizes[axis], sizes[axis])
        return config

    def build(self, sizes: Mapping[str, int], depths: Mapping[str, int]) -> nn.Module:
        return self.model_class(self.config_for(sizes, depths))

    def resized(
        self,
        sizes: Mapping[str, int],
        depths: Mapping[str, int],
        changes: Mapping[str, Any],
        orders: Mapping[str, list[int]] | None = None,
    ) -> HuggingFaceBuilder:
        config = self.config_for(sizes, depths, orders)
        for name, value in changes.items():
            write_field(config, name, value)
        check_config(config, self.config)
        reading = replace(self.reading, kv_heads=sizes.get("kv_heads"))
        return HuggingFaceBuilder(self.model_class, config, reading)

    def derived(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """{axis: size} that the config class derives from these sizes, whatever its own field says (Mamba's
        intermediate_size).
        """
        config, paths = self._config_of(sizes), self.fields.paths
        try:
            again = type(config).from_dict(config.to_dict())
        except Exception:  # a class that cannot be made from its own entries says nothing
            return {}
        read = {axis: read_field(again, path) for axis, path in paths.items() if not counts_heads(axis)}
        return {a: size for a, size in read.items() if isinstance(size, int) and size != read_field(config, paths[a])}

    def probes(self) -> list[dict[str, int]]:
        return probes(self.heads)

    def fact(self, name: str) -> Any:
        return read_field(self.config, name)

    def field(self, axis: str) -> str:
        return self.fields.name(axis)

    def describe_axis(self, axis: str) -> str:
        return self.heads.describe(axis)
