"""transformers models as builders: axis sizes <-> config fields."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from meristem.anatomy.builder import double_each
from meristem.anatomy.conventions import DEPTH_FIELDS, FIELDS, LINKED_FIELDS
from meristem.errors import MeristemError


def field_of(config: Any, axis: str) -> str | None:
    """The name of the config field that sets an axis, or None."""
    names = vars(config)
    return next((name for name in FIELDS.get(axis, ()) if isinstance(names.get(name), int)), None)


def depth_fields_of(config: Any) -> dict[str, str]:
    """{axis of depth: config field}; the plain field of an encoder-decoder counts its encoder."""
    names = vars(config)
    found = {
        axis: next((name for name in fields if isinstance(names.get(name), int)), None)
        for axis, fields in DEPTH_FIELDS.items()
    }
    if found["encoder_layers"]:
        found["layers"] = None
    elif found["decoder_layers"] and found["layers"]:
        found["encoder_layers"], found["layers"] = found["layers"], None
    return {axis: field for axis, field in found.items() if field}


class HuggingFaceBuilder:
    """Builds `model_class(config)` at other sizes.

    Args:
        model_class: a PreTrainedModel class.
        config: its config; never changed.
        kv_heads: key-value heads where the config's field does not tell (None: trust the field).
        grouped: whether query heads per key-value head can change (False: every query head has its own).
    """

    def __init__(self, model_class: type, config: Any, kv_heads: int | None = None, grouped: bool = True) -> None:
        self.model_class, self.config = model_class, copy.deepcopy(config)
        self._kv_heads, self._grouped = kv_heads, grouped and field_of(config, "kv_heads") is not None
        self.depth_fields = depth_fields_of(self.config)
        self.scopes = [s for s in ("encoder_", "decoder_") if field_of(self.config, f"{s}heads")] or [""]
        if field_of(self.config, "hidden") is None:
            raise MeristemError(
                f"{type(config).__name__} has no width field that Meristem knows; looked for {', '.join(FIELDS['hidden'])}"
            )
        self._pin("ffn", [4 * self._value("hidden")])
        if self.scopes == [""] and field_of(self.config, "heads"):
            self._pin("head_dim", [self._value("hidden") // self._value("heads")])
        self._sizes = self._read_sizes()

    def _value(self, axis: str) -> int:
        return getattr(self.config, field_of(self.config, axis) or "")

    def _pin(self, axis: str, guesses: list[int]) -> None:
        """Write down a size that the config leaves to be derived from another, if the model honours the field."""
        if field_of(self.config, axis):
            return
        shapes = self._shapes(self.config)
        for name in FIELDS[axis]:
            if isinstance(getattr(type(self.config), name, None), property):
                continue
            for guess in guesses:
                pinned, moved = copy.deepcopy(self.config), copy.deepcopy(self.config)
                setattr(pinned, name, guess)
                setattr(moved, name, 2 * guess)
                try:
                    honoured = self._shapes(pinned) == shapes and self._shapes(moved) != shapes
                except (ValueError, RuntimeError, TypeError, AttributeError):
                    continue
                if honoured:
                    self.config = pinned
                    return

    def _shapes(self, config: Any) -> dict[str, torch.Size]:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in self.model_class(config).state_dict().items()}

    def _read_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for axis in FIELDS:
            if not axis.endswith("heads") and field_of(self.config, axis):
                sizes[axis] = self._value(axis)
        for scope in self.scopes:
            if not field_of(self.config, f"{scope}heads"):
                continue
            heads = self._value(f"{scope}heads")
            field = field_of(self.config, "kv_heads") if not scope else None
            kv_heads = self._kv_heads or (getattr(self.config, field) if field else heads)
            sizes[f"{scope}kv_heads"], sizes[f"{scope}group"] = kv_heads, heads // kv_heads
            if not self._explicit_head_dim:
                sizes[f"{scope}head_dim"] = sizes["hidden"] // heads
        return sizes

    @property
    def _explicit_head_dim(self) -> bool:
        return field_of(self.config, "head_dim") is not None

    @property
    def _kv_heads_follow_field(self) -> bool:
        """False where the architecture ignores the field, as Falcon's multi-query attention does."""
        field = field_of(self.config, "kv_heads")
        return self._kv_heads is None or field is None or getattr(self.config, field) == self._kv_heads

    @property
    def sizes(self) -> Mapping[str, int]:
        return self._sizes

    @property
    def depths(self) -> Mapping[str, int]:
        return {axis: getattr(self.config, field) for axis, field in self.depth_fields.items()}

    @property
    def model_type(self) -> str:
        return self.config.model_type

    def kv_alternatives(self) -> list[HuggingFaceBuilder]:
        """Builders that read the number of key-value heads differently: the field, all heads, one."""
        if self.scopes != [""] or "kv_heads" not in self._sizes:
            return [self]
        candidates = dict.fromkeys([self._sizes["kv_heads"], self._value("heads"), 1])
        grouped = [True, False] if self._grouped else [False]
        return [HuggingFaceBuilder(self.model_class, self.config, k, g) for k in candidates for g in grouped]

    def config_for(
        self,
        sizes: Mapping[str, int],
        depths: Mapping[str, int],
        orders: Mapping[str, list[int]] | None = None,
    ) -> Any:
        """The config of the network at these sizes; `orders` as in `Builder.resized`.

        Raises:
            MeristemError: if the architecture derives head_dim from hidden_size / num_attention_heads and the sizes
                asked for do not agree with that.
        """
        config = copy.deepcopy(self.config)
        for axis, size in sizes.items():
            field = field_of(self.config, axis)
            if field is None or axis.endswith("heads"):
                continue
            for linked in LINKED_FIELDS.get(axis, ()):
                if getattr(config, linked, None) == self._sizes[axis]:
                    setattr(config, linked, size)
            setattr(config, field, size)
        for scope in self.scopes:
            if f"{scope}kv_heads" in sizes:
                self._set_heads(config, scope, sizes)
        for axis, depth in depths.items():
            self._set_depth(config, axis, depth, (orders or {}).get(axis))
        return config

    def _set_heads(self, config: Any, scope: str, sizes: Mapping[str, int]) -> None:
        kv_heads, group = sizes[f"{scope}kv_heads"], sizes[f"{scope}group"]
        heads_field, kv_field = field_of(self.config, f"{scope}heads"), field_of(self.config, "kv_heads")
        assert heads_field is not None
        old_heads = getattr(self.config, heads_field)
        if group != self._sizes[f"{scope}group"] and not self._grouped:
            raise MeristemError(
                f"{self.model_type} gives every query head its own key-value head; asked for {kv_heads * group} query "
                f"and {kv_heads} key-value heads, {kv_heads * self._sizes[f'{scope}group']} and {kv_heads} would work"
            )
        if not self._explicit_head_dim:
            head_dim = sizes[f"{scope}head_dim"]
            if sizes["hidden"] != kv_heads * group * head_dim:
                raise MeristemError(
                    f"{self.model_type} splits hidden_size evenly over its heads, and head_dim has to stay {head_dim}: "
                    f"asked for hidden_size={sizes['hidden']} with {heads_field}={kv_heads * group}; "
                    f"hidden_size={kv_heads * group * head_dim} would work"
                )
        if kv_heads != self._sizes[f"{scope}kv_heads"] and not self._kv_heads_follow_field:
            raise MeristemError(
                f"this {self.model_type} has {self._sizes['kv_heads']} key-value head(s) whatever its config says; "
                f"asked for {kv_heads}"
            )
        if kv_field and not scope:
            if getattr(self.config, kv_field) == self._sizes["kv_heads"]:
                setattr(config, kv_field, kv_heads)
            elif getattr(self.config, kv_field) == old_heads:
                setattr(config, kv_field, kv_heads * group)
        setattr(config, heads_field, kv_heads * group)

    def _set_depth(self, config: Any, axis: str, depth: int, order: list[int] | None) -> None:
        old = getattr(config, self.depth_fields[axis])
        order = order or [i % old for i in range(depth)]
        if order == list(range(old)):
            return
        for name, value in list(vars(config).items()):  # layer_types and its like: one entry per layer
            if isinstance(value, list) and len(value) == old and axis != "decoder_layers":
                setattr(config, name, [value[i] for i in order])
        setattr(config, self.depth_fields[axis], depth)

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
            setattr(config, name, value)
        return HuggingFaceBuilder(self.model_class, config, sizes.get("kv_heads"), self._grouped)

    def probes(self) -> list[dict[str, int]]:
        fixed = {f"{scope}group" for scope in self.scopes if not self._grouped}
        fixed |= {"kv_heads"} if not self._kv_heads_follow_field else set()
        movable = {a: s for a, s in self._sizes.items() if a not in fixed}
        probes = [{**self._sizes, **probe} for probe in double_each(movable)]
        if self._explicit_head_dim:
            return probes
        scopes = [s for s in self.scopes if f"{s}kv_heads" in self._sizes]
        for probe in probes:  # hidden = kv_heads * group * head_dim must hold for every scope
            inner = [probe[f"{s}kv_heads"] * probe[f"{s}group"] * probe[f"{s}head_dim"] for s in scopes]
            probe["hidden"] = max([probe["hidden"], *inner])
            for s, size in zip(scopes, inner, strict=True):
                probe[f"{s}head_dim"] *= probe["hidden"] // size
        return probes

    def fact(self, name: str) -> Any:
        return getattr(self.config, name, None)

    def describe_axis(self, axis: str) -> str:
        scope = next((s for s in ("encoder_", "decoder_") if axis.startswith(s)), "")
        kind = axis.removeprefix(scope)
        heads = field_of(self.config, f"{scope}heads")
        if kind == "kv_heads":
            return field_of(self.config, "kv_heads") or str(heads)
        if kind == "group":
            return f"{heads} / kv heads"
        if kind == "head_dim" and not self._explicit_head_dim:
            return f"{field_of(self.config, 'hidden')} / {heads}"
        return field_of(self.config, axis) or "derived"
