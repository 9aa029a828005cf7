"""HyperCloning: clone a network into one that is a whole number of times wider and computes the same function.

Samragh, Mirzadeh, Alizadeh Vahid, Faghri, Cho, Nabi, Naik, Farajtabar: "Scaling Smart: Accelerating Large Language Model
Pre-training with Small Model Initialization", 2024, arXiv:2409.12903.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.errors import MeristemError
from meristem.growth.method import Weights
from meristem.growth.padding import follows, lossless
from meristem.growth.width import NoisyWidthMethod


@dataclass(frozen=True)
class HyperCloning(NoisyWidthMethod):
    """Every axis is stacked n times: write = n identities on top of each other, read = the same / n (paper, eq. 2-4).

    Heads and key-value heads are cloned whole, head_dim is kept; a single key-value head (multi-query) stays single.
    Targets have to be whole multiples of the present sizes.

    Args:
        order: "tile" (0 1 2 0 1 2, the paper's) or "interleave" (0 0 1 1 2 2), which commutes with channels that a forward pass pads
            on both ends. If the one is not exact, the other is tried.
        noise: on the readers, in the null space of the copies, so that the function is kept. Without it (`noise=0.0`) the copies
            get the same gradients in every step and stay equal for good: the large network trains as the small one would.
    """

    name: ClassVar[str] = "hypercloning"
    order: Literal["tile", "interleave"] = "tile"
    noise: float = 0.1

    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """A stack of identities. Raises MeristemError for a target that is no whole multiple."""
        old = anatomy.sizes[axis]
        if target % old and follows(anatomy, axis):  # what a function rounds: 88 for 32, and 172 for 64
            return lossless(anatomy, axis, target)
        if target % old:
            raise MeristemError(
                f"hypercloning clones whole networks: {axis} cannot go from {old} to {target}; "
                f"{max(2, round(target / old)) * old} would work, or a method for any ratio (lemon)"
            )
        if self.order == "interleave":
            return AxisMap.duplicate(torch.arange(old).repeat_interleave(target // old), old)
        return AxisMap.tile(old, target // old)
