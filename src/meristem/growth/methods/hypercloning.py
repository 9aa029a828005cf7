"""HyperCloning: make a network a whole number of times wider, with the same function.

Samragh, Mirzadeh, Alizadeh Vahid, Faghri, Cho, Nabi, Naik, Farajtabar: "Scaling Smart: Accelerating Large
Language Model Pre-training with Small Model Initialization", 2024, arXiv:2409.12903.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.errors import MeristemError
from meristem.growth.methods.method import Weights
from meristem.growth.methods.width import NoisyWidthMethod
from meristem.growth.widths.padding import follows, lossless


@dataclass(frozen=True)
class HyperCloning(NoisyWidthMethod):
    """Copy the whole of every axis n times: write = n stacked identities, read = the same divided by n
    (arXiv:2409.12903, equations 2 to 4).

    Keeps the function. Heads and key-value heads are copied whole, and `head_dim` stays as it is. A single
    key-value head (multi-query attention) stays single. The targets have to be whole multiples of the present
    sizes. The other options are those of `WidthMethod` and `NoisyWidthMethod`.

    Args:
        order: "tile" (0 1 2 0 1 2, as in the paper) or "interleave" (0 0 1 1 2 2). Networks whose forward
            pass pads channels at both ends need "interleave". If "tile" is not exact, "interleave" is tried.
        noise: the standard deviation of the noise on readers, relative to that of each tensor. It lies in the
            null space of the copies, so the function is kept. With `noise=0.0` the copies get equal gradients
            at every step and stay equal: the large network trains as the small one would.

    Raises:
        MeristemError: when a network is grown, if a target is not a whole multiple.
    """

    name: ClassVar[str] = "hypercloning"
    order: Literal["tile", "interleave"] = "tile"
    noise: float = 0.1

    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """Stacked identities. Raises MeristemError if the target is not a whole multiple."""
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
