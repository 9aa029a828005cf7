"""What all width methods share: their options, and one map for each axis that they change."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import are_pairs, is_frequencies, skipped_by, whole_of
from meristem.anatomy.heads import Heads
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.methods.method import Choices, Method, Weights
from meristem.growth.sizes.targets import width_targets
from meristem.growth.structure.alibi import aligned_heads, has_alibi
from meristem.growth.structure.regrouping import regrouped
from meristem.growth.structure.vocabulary import more_positions, more_tokens, wider_projection
from meristem.growth.widths.head_dim import head_dim_map


@dataclass(frozen=True)
class WidthMethod(Method):
    """The targets that every method that widens axes takes.

    Args:
        width: a factor for every axis except `head_dim`, the vocabulary and positions. Or {axis: target
            size}, as in `HyperCloning({"channels": 24})`, which means the same as `sizes`.
        hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim: target sizes of
            single axes. They override `width`.
        vocab_size, max_position_embeddings: target sizes of the vocabulary and of learned positions. A new
            token gets the mean of the old rows. A new position gets the row of the last one.
        pad_to_multiple_of: round the vocabulary up to a multiple of this number.
        positions: "last", or "interpolate" for new positions that interpolate all old ones, which changes the
            function.
        sizes: further targets by the name of their axis: {"encoder_ffn": 2048}. `meristem inspect` prints the
            names.

    Raises:
        MeristemError: when a network is grown, if a target is impossible or if nothing would grow.
    """

    width: int | Mapping[str, int] = 1
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    pad_to_multiple_of: int | None = None
    positions: Literal["last", "interpolate"] = "last"
    sizes: Mapping[str, int] | None = None

    @abstractmethod
    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """The map that takes one axis to its target size."""

    def targets(self, anatomy: Anatomy) -> dict[str, int]:
        """{axis: target size} of every axis that changes."""
        named = self.width if isinstance(self.width, Mapping) else {}
        return width_targets(
            anatomy,
            self.name,
            1 if isinstance(self.width, Mapping) else self.width,
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim,
            {**self._rows(anatomy), **named, **(self.sizes or {})},
        )

    def _rows(self, anatomy: Anatomy) -> dict[str, int]:
        """{axis: target size} of the vocabulary and of learned positions."""
        asked = {"vocab": self.vocab_size, "positions": self.max_position_embeddings}
        multiple = self.pad_to_multiple_of
        if multiple is not None and (isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1):
            raise MeristemError(f"{self.name}: pad_to_multiple_of must be a positive whole number, got {multiple!r}")
        if multiple:
            asked["vocab"] = -(-(self.vocab_size or anatomy.sizes.get("vocab", 0)) // multiple) * multiple
        if self.max_position_embeddings and "positions" not in anatomy.axes:
            raise MeristemError(
                f"{self.name}: {anatomy.builder.model_type} has no learned positions, so max_position_embeddings changes no tensor; "
                "write it into config.json"
            )
        return {axis: size for axis, size in asked.items() if size is not None}

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """One map for each target. Heads under ALiBi and sinusoidal positions get maps that keep their slopes
        and frequencies.

        Raises:
            MeristemError: if a target is impossible, or if there is none.
        """
        targets = self.targets(anatomy)
        if not targets and not self.layer_maps(anatomy) and not self.choices().fields:
            raise MeristemError(f"{self.name}: nothing to grow; give width=2 or a target such as hidden_size=")
        moved = {axis for axis in targets if anatomy.axes[axis].kind == "group" and targets[axis] < anatomy.sizes[axis]}
        plain = [axis for axis in targets if not skipped_by(axis) and axis not in moved]
        maps = {axis: self._map(anatomy, axis, targets, weights) for axis in plain}
        for group in moved:
            maps |= _regrouped(anatomy, group, targets)
        maps |= {axis: maps[whole_of(axis)].rest(skipped_by(axis)) for axis in targets if skipped_by(axis)}
        return {**maps, **_alibi_maps(anatomy, targets)} if has_alibi(anatomy) else maps

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """True, unless norms prevent it (see `norms_are_kept`) or positions are interpolated."""
        moved = self.positions == "interpolate" and "positions" in maps
        return not moved and super().promises(anatomy, maps, model, inputs)

    def _map(self, anatomy: Anatomy, axis: str, targets: Mapping[str, int], weights: Weights) -> AxisMap:
        if is_frequencies(axis) or are_pairs(axis):
            return _sinusoids(self.name, axis, anatomy.sizes[axis], targets[axis])
        if anatomy.axes[axis].kind == "vocab":
            return more_tokens(anatomy.sizes[axis], targets[axis])
        if anatomy.axes[axis].kind == "projection":
            return wider_projection(anatomy.sizes[axis], targets[axis])
        if anatomy.axes[axis].kind == "positions":
            return more_positions(anatomy.sizes[axis], targets[axis], self.positions == "interpolate")
        if anatomy.axes[axis].kind == "head_dim":
            return head_dim_map(anatomy, axis, {**anatomy.sizes, **targets}, self.choices().fields)
        return self.axis_map(anatomy, axis, targets[axis], weights)


@dataclass(frozen=True)
class NoisyWidthMethod(WidthMethod):
    """The options of width methods that can add noise and repair a tied head.

    Args:
        noise: the standard deviation of the noise on readers, relative to that of each tensor. It breaks the
            symmetry of copies. It lies in the null space of the copies, so the function is kept.
        seed: the seed of the noise, and of everything else that the method draws.
        tied: "keep" a tied head (its factor goes into the gain of the norm before it), or "untie" it.
    """

    noise: float = 0.0
    seed: int = 0
    tied: Literal["keep", "untie"] = "keep"

    def choices(self) -> Choices:
        """The options above."""
        return Choices(self.noise, self.seed, self.tied == "keep")


def _regrouped(anatomy: Anatomy, group: str, targets: Mapping[str, int]) -> dict[str, AxisMap]:
    kv_heads, heads = Heads.of(group).kv_heads, Heads.of(group).heads
    kv, query = regrouped(anatomy.sizes[kv_heads], anatomy.sizes[group], targets[kv_heads], targets[group])
    for tensor in anatomy.tensors.values():
        if any(group in dimension.layout.axes() for dimension in tensor.dimensions):
            raise MeristemError(
                f"{tensor.name} holds queries, keys and values group by group, so its groups of {anatomy.sizes[group]} query "
                f"heads cannot be divided; {targets[kv_heads] * anatomy.sizes[group]} heads on {targets[kv_heads]} would work"
            )
    return {kv_heads: kv, heads: query}


def _sinusoids(method: str, axis: str, old: int, target: int) -> AxisMap:
    """Frequencies stay where the wider table has them. The units to which they are added become neighbours of
    their copies, so that the first copy of each is where its frequency is.
    """
    if target % old:
        raise MeristemError(
            f"{method}: sinusoidal positions keep their frequencies only if {whole_of(axis)} grows by a whole factor; "
            f"asked for {2 * old} -> {2 * target}, {2 * old * max(1, round(target / old))} would work"
        )
    times = target // old
    if are_pairs(axis):
        return AxisMap.duplicate(torch.arange(old).repeat_interleave(times), old)
    return AxisMap.spaced(old, times)


def _alibi_maps(anatomy: Anatomy, targets: Mapping[str, int]) -> dict[str, AxisMap]:
    kv_heads, group = anatomy.sizes["kv_heads"], anatomy.sizes["group"]
    if kv_heads > 1 and group > 1 and ({"kv_heads", "group"} & set(targets)):
        raise MeristemError("ALiBi heads in key-value groups cannot be widened; keep num_attention_heads as it is")
    axis = "group" if kv_heads == 1 else "kv_heads"
    return {axis: aligned_heads(anatomy.sizes[axis], targets[axis])} if axis in targets else {}
