"""The fields of a config that set sizes and depths: where they are, what they say, and which others follow
them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from meristem.anatomy.axis_ref import kind_of
from meristem.anatomy.conventions import FIELDS, LINKED_BY_TYPE, LINKED_FIELDS, PROPORTIONAL_FIELDS
from meristem.anatomy.fields import (
    axis_paths,
    counterparts,
    depth_at,
    depth_paths,
    joining_paths,
    main_part,
    read_field,
    write_field,
)
from meristem.anatomy.layer_lists import follow_layers
from meristem.errors import MeristemError


@dataclass(frozen=True)
class ConfigFields:
    """The dotted paths of the fields of one config.

    Args:
        config: the config. It does not change.
        root: the part of a composite config that grows ("text_config."), or "".
        paths: {axis: path of the field that sets it}.
        depth_paths: {axis of depth: path of the field that counts its layers}.
    """

    config: Any
    root: str
    paths: Mapping[str, str]
    depth_paths: Mapping[str, str]

    @staticmethod
    def of(config: Any, moves: Callable[[Any], bool]) -> ConfigFields:
        """Find the fields.

        Args:
            config: a transformers config.
            moves: a function that says whether a changed config builds a network of other shapes.

        Raises:
            MeristemError: if the config has no width that Meristem knows.
        """
        root = main_part(config, moves)
        paths = axis_paths(config, root, moves)
        if not any(kind_of(axis) == "hidden" for axis in paths):
            raise MeristemError(
                f"{type(config).__name__} has no width field that Meristem knows; it looked for {', '.join(FIELDS['hidden'])}"
            )
        return ConfigFields(config, root, paths, depth_paths(config, root, moves))

    @cached_property
    def counterparts(self) -> tuple[str, ...]:
        """The parts of a composite config whose widths follow that of `root`."""
        return tuple(counterparts(self.config, self.root))

    @property
    def depths(self) -> dict[str, int]:
        """{axis of depth: number of layers}."""
        return {axis: depth_at(self.config, path) for axis, path in self.depth_paths.items()}

    def value(self, axis: str) -> int:
        """The size of an axis in the config."""
        return read_field(self.config, self.paths[axis])

    def name(self, axis: str) -> str:
        """The path of the field of an axis, or the name of the axis if no field sets it."""
        return self.paths.get(axis, axis)

    def unset(self, axis: str) -> list[str]:
        """The paths at which the config could state a size of the axis that it leaves out."""
        owner = read_field(self.config, self.root.rstrip(".")) if self.root else self.config
        names = (name for name in FIELDS[axis] if "." not in name)
        return [self.root + name for name in names if not isinstance(getattr(type(owner), name, None), property)]

    def write(self, config: Any, axis: str, old: int, new: int) -> None:
        """Set the field of an axis, the fields that hold the same number, and those that keep their
        proportion to it.
        """
        for root in self.counterparts:
            names = (self.paths[axis].removeprefix(self.root), *FIELDS.get(axis, ()))
            path = next((root + name for name in names if read_field(config, root + name) is not None), None)
            if path is not None and read_field(config, path) == old:
                write_field(config, path, new)
        joining = joining_paths(self.config, self.root) if axis == "hidden" else []
        joining += LINKED_BY_TYPE.get(self.config.model_type, ()) if kind_of(axis) == "hidden" else ()
        for linked in (*self._anywhere(LINKED_FIELDS.get(axis, ())), *joining):
            if read_field(self.config, linked) == old:
                write_field(config, linked, new)
        for path in self._anywhere(PROPORTIONAL_FIELDS.get(axis, ())):
            value = read_field(config, path)
            values = value if isinstance(value, list | tuple) else [value] if isinstance(value, int) else []
            if values and all(v * new % old == 0 for v in values):
                grown = [v * new // old for v in values]
                write_field(config, path, grown[0] if isinstance(value, int) else type(value)(grown))
        write_field(config, self.paths[axis], new)

    def _anywhere(self, names: tuple[str, ...]) -> list[str]:
        """The paths of fields at the top of a config or in the part that grows."""
        return [path for name in names for path in dict.fromkeys((name, self.root + name))]

    def write_depth(self, config: Any, axis: str, depth: int, order: list[int] | None, first: int = 0) -> None:
        """Set a number of layers, and what the config says about each layer.

        Args:
            config: the config to change.
            axis: the axis of depth.
            depth: the number of layers.
            order: for each new layer, the old layer whose entry it takes. By default the last one is
                repeated.
            first: as in `follow_layers`.
        """
        old, path = self.depths[axis], self.depth_paths[axis]
        order = order or [min(i, old - 1) for i in range(depth)]
        if order == list(range(old)):
            return
        owner = config
        for part in path.split(".")[:-1]:
            owner = owner if part == "depths" else read_field(owner, part)
        if not axis.startswith("stage") and (axis != "decoder_layers" or "." in path):
            follow_layers(owner, order, old, first)
        exceptions = owner.to_dict().get("per_layer_config") if hasattr(owner, "to_dict") else None
        if isinstance(read_field(config, path), int):
            write_field(config, path, depth)
        if exceptions:  # what single layers do otherwise, by their numbers
            by_layer = {int(layer): entries for layer, entries in exceptions.items()}
            owner.per_layer_config = {new: by_layer[layer] for new, layer in enumerate(order) if layer in by_layer}

    def with_value(self, path: str, value: int) -> Any:
        """A copy of the config with one field set."""
        config = copy.deepcopy(self.config)
        write_field(config, path, value)
        return config
