"""The heads of a config: how they are read, which numbers of them it can hold, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from meristem.anatomy.axis_ref import AxisRef, kind_of
from meristem.anatomy.config_fields import ConfigFields
from meristem.anatomy.fields import read_field
from meristem.anatomy.heads import GROUP, HEAD_DIM, HEADS, KV_HEADS, counts_heads
from meristem.errors import MeristemError


@dataclass(frozen=True)
class Reading:
    """One way to read the heads of a config. Shapes decide which is right (`ConfigHeads.readings`).

    Args:
        kv_heads: the number of key-value heads, if the field of the config does not state it. None means that
            the field is right.
        grouped: whether the number of query heads per key-value head can change. False: every query head has
            its own. None: it can if the key-value heads have a field.
        fixed: the number of key-value heads stays, whatever its field says (multi-query attention by another
            flag).
        split: the heads divide hidden_size evenly even if head_dim has a field of its own.
    """

    kv_heads: int | None = None
    grouped: bool | None = None
    fixed: bool = False
    split: bool = False


@dataclass(frozen=True)
class Split:
    """The heads of a scope divide an axis: kv_heads . group . head_dim = factor . axis."""

    axis: str
    factor: Fraction


def head_scopes(paths: Mapping[str, str]) -> list[str]:
    """The scopes that have heads. If encoder and decoder have their own, heads without a scope belong to one
    of the two.
    """
    scopes = [AxisRef.parse(axis).scope for axis in paths if kind_of(axis) == HEADS]
    return [s for s in scopes if s] if {"encoder_", "decoder_"} <= set(scopes) else scopes


@dataclass(frozen=True)
class ConfigHeads:
    """The heads of one config in one reading."""

    fields: ConfigFields
    reading: Reading
    model_type: str

    @cached_property
    def scopes(self) -> list[str]:
        """As `head_scopes`."""
        return head_scopes(self.fields.paths)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """{axis: size} of all axes of the config: those of its fields, and heads, groups and their width."""
        paths = self.fields.paths
        sizes = {axis: self.fields.value(axis) for axis in paths if not counts_heads(axis)}
        for scope in self.scopes:
            heads = self.fields.value(f"{scope}{HEADS}")
            kv_heads = self.fields.value(f"{scope}{KV_HEADS}") if f"{scope}{KV_HEADS}" in paths else heads
            if not scope and self.reading.kv_heads:
                kv_heads = self.reading.kv_heads
            kv_heads = kv_heads if heads % kv_heads == 0 else heads
            sizes[f"{scope}{KV_HEADS}"], sizes[f"{scope}{GROUP}"] = kv_heads, heads // kv_heads
            shared_out = self._shared_out(scope)
            if shared_out is not None and f"{scope}{HEAD_DIM}" not in paths:
                sizes[f"{scope}{HEAD_DIM}"] = self._stage_factor(scope, shared_out) * sizes[shared_out] // heads
        return sizes

    @cached_property
    def splits(self) -> dict[str, Split]:
        """{scope: the axis that its heads divide}, if they divide one."""
        splits: dict[str, Split] = {}
        for scope in self.scopes:
            shared_out = self._shared_out(scope)
            if shared_out is None or (f"{scope}{HEAD_DIM}" in self.fields.paths and not self.reading.split):
                continue
            width = self.fields.value(f"{scope}{HEADS}") * self.sizes[f"{scope}{HEAD_DIM}"]
            if width:
                splits[scope] = Split(shared_out, Fraction(width, self.sizes[shared_out]))
        return splits

    def _shared_out(self, scope: str) -> str | None:
        """The axis that the heads of a scope divide, if their width has no field of its own."""
        return next((a for a in (f"{scope or 'bottleneck_'}hidden", "hidden") if a in self.fields.paths), None)

    def _stage_factor(self, scope: str, shared_out: str) -> int:
        """Stages double the width if the config states only that of the first."""
        stage = scope.removeprefix("stage").rstrip("_")
        return 2 ** int(stage) if stage.isdigit() and shared_out == "hidden" else 1

    def grouped(self, scope: str) -> bool:
        """Whether the number of query heads per key-value head can change."""
        if scope or self.reading.grouped is None:
            return f"{scope}{KV_HEADS}" in self.fields.paths
        return self.reading.grouped

    @property
    def follow_field(self) -> bool:
        """False if the architecture ignores the field of key-value heads, as Falcon's multi-query attention
        does.
        """
        written = self.fields.value(KV_HEADS) if KV_HEADS in self.fields.paths else 0
        return not self.reading.fixed and self.sizes[KV_HEADS] in (self.fields.value(HEADS), written)

    def readings(self) -> Iterator[Reading]:
        """All ways to read the heads: key-value heads by the field, all, or one; hidden_size divided or
        not.
        """
        readings = [Reading()]
        if "" in self.scopes:
            heads = self.fields.value(HEADS)
            for kv_heads in dict.fromkeys([self.sizes[KV_HEADS], heads, 1]):
                readings += [Reading(kv_heads, grouped) for grouped in (True, False) if grouped or kv_heads > 1]
            readings.append(Reading(1, True, fixed=True))
        yield from readings
        yield from (replace(reading, split=True) for reading in readings)

    def fixed_axes(self) -> set[str]:
        """The axes that cannot change."""
        fixed = {f"{scope}{GROUP}" for scope in self.scopes if not self.grouped(scope)}
        return fixed | ({KV_HEADS} if "" in self.scopes and not self.follow_field else set())

    def check(self, scope: str, sizes: Mapping[str, int]) -> None:
        """Check whether the config can hold the heads of a scope at these sizes.

        Raises:
            MeristemError: if it cannot. The message says what would work.
        """
        kv_heads, group = sizes[f"{scope}{KV_HEADS}"], sizes[f"{scope}{GROUP}"]
        old_kv, old_group = self.sizes[f"{scope}{KV_HEADS}"], self.sizes[f"{scope}{GROUP}"]
        if group != old_group and not self.grouped(scope):
            raise MeristemError(
                f"{self.model_type} gives every query head its own key-value head; asked for {kv_heads * group} query "
                f"and {kv_heads} key-value heads, {kv_heads * old_group} and {kv_heads} would work"
            )
        if scope in self.splits:
            self._check_split(scope, sizes)
        if not scope and kv_heads != old_kv and not self.follow_field:
            raise MeristemError(
                f"this {self.model_type} has {old_kv} key-value head(s) whatever its config says; asked for {kv_heads}"
            )

    def _check_split(self, scope: str, sizes: Mapping[str, int]) -> None:
        split, heads = self.splits[scope], sizes[f"{scope}{KV_HEADS}"] * sizes[f"{scope}{GROUP}"]
        head_dim, width = sizes[f"{scope}{HEAD_DIM}"], split.factor * sizes[split.axis]
        if width == heads * head_dim:
            return
        works = heads * head_dim / split.factor
        name = "hidden_size" if split.axis == "hidden" else self.fields.name(split.axis)  # as the options call it
        kept = "has to stay" if head_dim == self.sizes[f"{scope}{HEAD_DIM}"] else "is to be"
        field = self.fields.name(f"{scope}{HEADS}")
        fitting = (
            f"; or {field}={int(width // head_dim)} with {name}={sizes[split.axis]}" if width % head_dim == 0 else ""
        )
        raise MeristemError(
            f"{self.model_type} splits {name} evenly over its heads, and head_dim {kept} {head_dim}: asked "
            f"for {name}={sizes[split.axis]} with {field}={heads}; {name}={works} would work{fitting}"
        )

    def write(self, config: Any, scope: str, sizes: Mapping[str, int]) -> None:
        """Write the heads of a scope into a config."""
        fields, kv_axis = self.fields, f"{scope}{KV_HEADS}"
        kv_heads, heads = sizes[kv_axis], sizes[kv_axis] * sizes[f"{scope}{GROUP}"]
        if kv_axis in fields.paths:
            written = read_field(fields.config, fields.paths[kv_axis])
            if written == self.sizes[kv_axis]:
                fields.write(config, kv_axis, written, kv_heads)
            elif written == fields.value(f"{scope}{HEADS}"):
                fields.write(config, kv_axis, written, heads)
        fields.write(config, f"{scope}{HEADS}", fields.value(f"{scope}{HEADS}"), heads)

    def describe(self, axis: str) -> str:
        """What sets the size of an axis, in words: the path of a field, or how it follows from others."""
        scope = next((s for s in self.scopes if s and axis.startswith(s)), "")
        kind, heads = axis.removeprefix(scope), self.fields.name(f"{scope}{HEADS}")
        if kind == KV_HEADS:
            return self.fields.paths.get(axis, heads)
        if kind == GROUP:
            return f"{heads} / kv heads"
        if kind == HEAD_DIM and axis not in self.fields.paths:
            return f"{self.fields.name(self.splits[scope].axis)} / {heads}"
        return self.fields.paths.get(axis, "derived")
