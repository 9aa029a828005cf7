"""transformers models as builders: axis sizes <-> config fields."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import nn

from meristem.anatomy.builder import double_each
from meristem.anatomy.conventions import FIELDS, LINKED_FIELDS, PROPORTIONAL_FIELDS
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
from meristem.anatomy.uninitialised import uninitialised
from meristem.anatomy.validity import check_config
from meristem.errors import MeristemError


@dataclass(frozen=True)
class Reading:
    """One way to read the heads of a config; shapes decide which is right (`HuggingFaceBuilder.alternatives`).

    kv_heads: key-value heads where the config's field does not tell (None: trust the field).
    grouped: whether query heads per key-value head can change (False: every query head has its own; None: they can where
        the key-value heads have a field).
    fixed: the key-value heads stay as they are, whatever their field says (multi-query attention by another flag).
    split: the heads share out hidden_size evenly even where head_dim has a field of its own.
    """

    kv_heads: int | None = None
    grouped: bool | None = None
    fixed: bool = False
    split: bool = False


@dataclass(frozen=True)
class Split:
    """The heads of a scope share out an axis: kv_heads . group . head_dim = factor . axis."""

    axis: str
    factor: Fraction


class HuggingFaceBuilder:
    """Builds `model_class(config)` at other sizes.

    Args:
        model_class: a PreTrainedModel class, or what else makes a network from a config (`instances.constructor_of`).
        config: its config; never changed.
        reading: how to read its heads.

    Raises:
        MeristemError: if the config has no width that Meristem knows.
    """

    def __init__(self, model_class: Any, config: Any, reading: Reading = Reading()) -> None:
        self.model_class, self.config, self.reading = model_class, copy.deepcopy(config), reading
        self.root = main_part(self.config, self._moves)
        self.counterparts = counterparts(self.config, self.root)
        self.paths = axis_paths(self.config, self.root, self._moves)
        self.depth_paths = depth_paths(self.config, self.root, self._moves)
        if not any(axis.endswith("hidden") for axis in self.paths):
            raise MeristemError(
                f"{type(config).__name__} has no width field that Meristem knows; looked for {', '.join(FIELDS['hidden'])}"
            )
        scopes = [a.removesuffix("heads") for a in self.paths if a.endswith("heads") and not a.endswith("kv_heads")]
        self.scopes = [s for s in scopes if s] if {"encoder_", "decoder_"} <= set(scopes) else scopes
        if "hidden" in self.paths:
            hidden = self._value("hidden")
            self._pin("ffn", 4 * hidden)
            if "" in self.scopes:
                shared_out = self._value("bottleneck_hidden") if "bottleneck_hidden" in self.paths else hidden
                self._pin("head_dim", shared_out // self._value("heads"))
        self._sizes, self._splits = self._read_sizes()

    def _value(self, axis: str) -> int:
        return read_field(self.config, self.paths[axis])

    def _pin(self, axis: str, guess: int) -> None:
        """Write down a size that the config leaves to be derived from another, if the model honours the field."""
        if axis in self.paths or guess < 1:
            return
        root = self.root
        owner = read_field(self.config, root.rstrip(".")) if root else self.config
        for name in FIELDS[axis]:
            if "." in name or isinstance(getattr(type(owner), name, None), property):
                continue
            pinned, moved = copy.deepcopy(self.config), copy.deepcopy(self.config)
            write_field(pinned, root + name, guess)
            write_field(moved, root + name, 2 * guess)
            if not self._moves(pinned, unless_built=True) and self._moves(moved):
                self.config = pinned
                self.paths[axis] = root + name
                return

    def _moves(self, config: Any, unless_built: bool = False) -> bool:
        """Whether this config builds a network of other shapes; `unless_built` is the answer if it builds none."""
        try:
            return self._shapes(config) != self._own_shapes
        except (ValueError, RuntimeError, TypeError, AttributeError, IndexError):
            return unless_built

    @cached_property
    def _own_shapes(self) -> dict[str, torch.Size]:
        return self._shapes(self.config)  # fields that are written down later (`_pin`) leave them as they are

    def _shapes(self, config: Any) -> dict[str, torch.Size]:
        with torch.device("meta"):
            model = uninitialised(lambda: self.model_class(config))
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    def _read_sizes(self) -> tuple[dict[str, int], dict[str, Split]]:
        sizes = {axis: self._value(axis) for axis in self.paths if not axis.endswith("heads")}
        splits: dict[str, Split] = {}
        for scope in self.scopes:
            heads = self._value(f"{scope}heads")
            kv_heads = self._value(f"{scope}kv_heads") if f"{scope}kv_heads" in self.paths else heads
            if not scope and self.reading.kv_heads:
                kv_heads = self.reading.kv_heads
            kv_heads = kv_heads if heads % kv_heads == 0 else heads
            sizes[f"{scope}kv_heads"], sizes[f"{scope}group"] = kv_heads, heads // kv_heads
            explicit = f"{scope}head_dim" in self.paths
            shared_out = next((a for a in (f"{scope or 'bottleneck_'}hidden", "hidden") if a in self.paths), None)
            if shared_out is None or (explicit and not self.reading.split):
                continue
            if not explicit:  # stages double the width when the config gives only the first one's
                stage = scope.removeprefix("stage").rstrip("_")
                factor = 2 ** int(stage) if stage.isdigit() and shared_out == "hidden" else 1
                sizes[f"{scope}head_dim"] = factor * sizes[shared_out] // heads
            width = heads * sizes[f"{scope}head_dim"]
            if width:
                splits[scope] = Split(shared_out, Fraction(width, sizes[shared_out]))
        return sizes, splits

    def _grouped(self, scope: str) -> bool:
        if scope or self.reading.grouped is None:
            return f"{scope}kv_heads" in self.paths
        return self.reading.grouped

    @property
    def sizes(self) -> Mapping[str, int]:
        return self._sizes

    @property
    def depths(self) -> Mapping[str, int]:
        return {axis: depth_at(self.config, path) for axis, path in self.depth_paths.items()}

    @property
    def splits(self) -> Mapping[str, tuple[str, Fraction]]:
        """As in `Builder`."""
        return {scope: (split.axis, split.factor) for scope, split in self._splits.items()}

    @property
    def model_type(self) -> str:
        return self.config.model_type

    def alternatives(self) -> Iterable[HuggingFaceBuilder]:
        """Builders that read the heads differently: key-value heads by the field, all, or one; hidden_size split or not."""
        readings = [Reading()]
        if "" in self.scopes:
            heads = self._value("heads")
            for kv_heads in dict.fromkeys([self._sizes["kv_heads"], heads, 1]):
                readings += [Reading(kv_heads, grouped) for grouped in (True, False) if grouped or kv_heads > 1]
            readings.append(Reading(1, True, fixed=True))
        readings += [replace(reading, split=True) for reading in readings]
        return (
            self if reading == self.reading else HuggingFaceBuilder(self.model_class, self.config, reading)
            for reading in readings
        )

    def config_for(
        self,
        sizes: Mapping[str, int],
        depths: Mapping[str, int],
        orders: Mapping[str, list[int]] | None = None,
    ) -> Any:
        """The config of the network at these sizes; `orders` as in `Builder.resized`.

        Raises:
            MeristemError: if the heads do not share out the widths asked for, or the architecture ties together what
                should differ.
        """
        config = copy.deepcopy(self.config)
        for axis, size in sizes.items():
            if axis not in self.paths or axis.endswith("heads"):
                continue
            self._write(config, axis, self._sizes[axis], size)
        for scope in self.scopes:
            self._check_heads(scope, sizes)
            self._write_heads(config, scope, sizes)
        for axis, depth in depths.items():
            self._write_depth(config, axis, depth, (orders or {}).get(axis))
        return config

    def _check_heads(self, scope: str, sizes: Mapping[str, int]) -> None:
        kv_heads, group = sizes[f"{scope}kv_heads"], sizes[f"{scope}group"]
        if group != self._sizes[f"{scope}group"] and not self._grouped(scope):
            raise MeristemError(
                f"{self.model_type} gives every query head its own key-value head; asked for {kv_heads * group} query "
                f"and {kv_heads} key-value heads, {kv_heads * self._sizes[f'{scope}group']} and {kv_heads} would work"
            )
        split = self._splits.get(scope)
        if split:
            head_dim, width = sizes[f"{scope}head_dim"], split.factor * sizes[split.axis]
            if width != kv_heads * group * head_dim:
                works = kv_heads * group * head_dim / split.factor
                name = "hidden_size" if split.axis == "hidden" else self._name(split.axis)  # as the options call it
                kept = "has to stay" if head_dim == self._sizes[f"{scope}head_dim"] else "is to be"
                raise MeristemError(
                    f"{self.model_type} splits {name} evenly over its heads, and head_dim {kept} {head_dim}: asked "
                    f"for {name}={sizes[split.axis]} with {self._name(f'{scope}heads')}={kv_heads * group}; "
                    f"{name}={works} would work"
                )
        if not scope and kv_heads != self._sizes["kv_heads"] and not self._kv_heads_follow_field:
            raise MeristemError(
                f"this {self.model_type} has {self._sizes['kv_heads']} key-value head(s) whatever its config says; "
                f"asked for {kv_heads}"
            )

    @property
    def _kv_heads_follow_field(self) -> bool:
        """False where the architecture ignores the field, as Falcon's multi-query attention does."""
        written = self._value("kv_heads") if "kv_heads" in self.paths else 0
        return not self.reading.fixed and self._sizes["kv_heads"] in (self._value("heads"), written)

    def _write_heads(self, config: Any, scope: str, sizes: Mapping[str, int]) -> None:
        kv_heads, group = sizes[f"{scope}kv_heads"], sizes[f"{scope}group"]
        kv_path = self.paths.get(f"{scope}kv_heads")
        if kv_path:
            written = read_field(self.config, kv_path)
            if written == self._sizes[f"{scope}kv_heads"]:
                self._write(config, f"{scope}kv_heads", written, kv_heads)
            elif written == self._value(f"{scope}heads"):
                self._write(config, f"{scope}kv_heads", written, kv_heads * group)
        self._write(config, f"{scope}heads", self._value(f"{scope}heads"), kv_heads * group)

    def _write(self, config: Any, axis: str, old: int, new: int) -> None:
        """Set the field of an axis, those that hold the same number, and those that keep their proportion to it."""
        for root in self.counterparts:
            path = root + self.paths[axis].removeprefix(self.root)
            if read_field(config, path) == old:
                write_field(config, path, new)
        joining = joining_paths(self.config, self.root) if axis == "hidden" else ()
        linked_fields = [
            path for name in LINKED_FIELDS.get(axis, ()) for path in dict.fromkeys((name, self.root + name))
        ]
        for linked in (*linked_fields, *joining):
            if read_field(config, linked) == old:
                write_field(config, linked, new)
        for field in (p for name in PROPORTIONAL_FIELDS.get(axis, ()) for p in dict.fromkeys((name, self.root + name))):
            value = read_field(config, field)
            values = value if isinstance(value, list | tuple) else [value] if isinstance(value, int) else []
            if values and all(v * new % old == 0 for v in values):
                grown = [v * new // old for v in values]
                write_field(config, field, grown[0] if isinstance(value, int) else type(value)(grown))
        write_field(config, self.paths[axis], new)

    def _write_depth(self, config: Any, axis: str, depth: int, order: list[int] | None) -> None:
        old = self.depths[axis]
        order = order or [min(i, old - 1) for i in range(depth)]
        if order == list(range(old)):
            return
        owner = config
        for part in self.depth_paths[axis].split(".")[:-1]:
            owner = owner if part == "depths" else read_field(owner, part)
        if not axis.startswith("stage") and axis != "decoder_layers":
            follow_layers(owner, order, old)
        exceptions = owner.to_dict().get("per_layer_config") if hasattr(owner, "to_dict") else None
        if isinstance(read_field(config, self.depth_paths[axis]), int):
            write_field(config, self.depth_paths[axis], depth)
        if exceptions:  # what single layers do otherwise, by their numbers
            by_layer = {int(layer): entries for layer, entries in exceptions.items()}
            owner.per_layer_config = {new: by_layer[layer] for new, layer in enumerate(order) if layer in by_layer}

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
        """{axis: size} that the config class derives from these sizes, whatever its own field says (Mamba's intermediate_size)."""
        config = copy.deepcopy(self.config)
        for axis in (axis for axis in sizes if axis in self.paths and not axis.endswith("heads")):
            self._write(config, axis, self._sizes[axis], sizes[axis])
        try:
            again = type(config).from_dict(config.to_dict())
        except Exception:  # a class that cannot be made from its own entries says nothing
            return {}
        read = {axis: read_field(again, path) for axis, path in self.paths.items() if not axis.endswith("heads")}
        return {
            a: size for a, size in read.items() if isinstance(size, int) and size != read_field(config, self.paths[a])
        }

    def probes(self) -> list[dict[str, int]]:
        fixed = {f"{scope}group" for scope in self.scopes if not self._grouped(scope)}
        fixed |= {"kv_heads"} if "" in self.scopes and not self._kv_heads_follow_field else set()
        movable = {a: s for a, s in self._sizes.items() if a not in fixed}
        probes = [{**self._sizes, **probe} for probe in double_each(movable)]
        for probe in probes:  # where heads share out an axis, it and they move together
            inner = {s: probe[f"{s}kv_heads"] * probe[f"{s}group"] * probe[f"{s}head_dim"] for s in self._splits}
            for scope, split in self._splits.items():
                probe[split.axis] = max(probe[split.axis], int(inner[scope] / split.factor))
            for scope, split in self._splits.items():
                probe[f"{scope}head_dim"] *= int(split.factor * probe[split.axis] / inner[scope])
        return probes

    def fact(self, name: str) -> Any:
        return read_field(self.config, name)

    def _name(self, axis: str) -> str:
        return self.paths.get(axis, axis)

    def describe_axis(self, axis: str) -> str:
        scope = next((s for s in self.scopes if s and axis.startswith(s)), "")
        kind = axis.removeprefix(scope)
        heads = self._name(f"{scope}heads")
        if kind == "kv_heads":
            return self.paths.get(axis, heads)
        if kind == "group":
            return f"{heads} / kv heads"
        if kind == "head_dim" and axis not in self.paths:
            return f"{self._name(self._splits[scope].axis)} / {heads}"
        return self.paths.get(axis, "derived")
