"""HyperCloning: clone a network into one that is a whole number of times wider and computes the same function.

Samragh, Mirzadeh, Alizadeh Vahid, Faghri, Cho, Nabi, Naik, Farajtabar: "Scaling Smart: Accelerating Large Language Model
Pre-training with Small Model Initialization", 2024, arXiv:2409.12903.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.errors import MeristemError
from meristem.growth.alibi import aligned_heads, has_alibi
from meristem.growth.method import Method
from meristem.growth.targets import WidthTargets


@dataclass(frozen=True)
class HyperCloning(Method):
    """Every axis is stacked n times: write = n identities on top of each other, read = the same / n (paper, eq. 2-4).

    Heads and key-value heads are cloned whole, head_dim is kept; a single key-value head (multi-query) stays single.

    Args:
        width: factor for every axis.
        hidden_size, intermediate_size, num_attention_heads, num_key_value_heads: targets that override it one by one,
            each a whole multiple of the present size.
        noise: symmetry-breaking noise on the readers, relative to the standard deviation of each tensor; it lies in
            the null space of the copies, so the function is kept.
        seed: of the noise.
        tied: "keep" a tied head (its factor goes into the gain of the norm before it) or "untie" it.
    """

    name: ClassVar[str] = "hypercloning"
    width: int = 1
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    noise: float = 0.0
    seed: int = 0
    tied: Literal["keep", "untie"] = "keep"

    def axis_maps(self, anatomy: Anatomy) -> Mapping[str, AxisMap]:
        """One `AxisMap.tile` per axis. Raises MeristemError for a target that is no whole multiple."""
        targets = WidthTargets.resolve(
            anatomy,
            self.name,
            self.width,
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.num_key_value_heads,
        ).sizes
        if not targets:
            raise MeristemError(f"{self.name}: nothing to grow; give width=2 or a target such as hidden_size=")
        maps = {axis: _tiled(axis, anatomy.sizes[axis], size) for axis, size in targets.items()}
        if has_alibi(anatomy):
            maps |= _alibi_maps(anatomy, targets)
        return maps


def _tiled(axis: str, old: int, new: int) -> AxisMap:
    if new % old:
        raise MeristemError(
            f"hypercloning clones whole networks: {axis} cannot go from {old} to {new}; "
            f"{max(1, round(new / old)) * old} would work, or a method for any ratio (lemon)"
        )
    return AxisMap.tile(old, new // old)


def _alibi_maps(anatomy: Anatomy, targets: Mapping[str, int]) -> dict[str, AxisMap]:
    kv_heads, group = anatomy.sizes["kv_heads"], anatomy.sizes["group"]
    if kv_heads > 1 and group > 1 and ({"kv_heads", "group"} & set(targets)):
        raise MeristemError("ALiBi heads in key-value groups cannot be cloned; keep num_attention_heads as it is")
    axis = "group" if kv_heads == 1 else "kv_heads"
    return {axis: aligned_heads(anatomy.sizes[axis], targets[axis])} if axis in targets else {}
