"""HyperCloning: clone a network into one that is a whole number of times wider and computes the same function.

Samragh, Mirzadeh, Alizadeh Vahid, Faghri, Cho, Nabi, Naik, Farajtabar: "Scaling Smart: Accelerating Large Language Model
Pre-training with Small Model Initialization", 2024, arXiv:2409.12903.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.errors import MeristemError
from meristem.growth.method import Weights
from meristem.growth.width import NoisyWidthMethod


@dataclass(frozen=True)
class HyperCloning(NoisyWidthMethod):
    """Every axis is stacked n times: write = n identities on top of each other, read = the same / n (paper, eq. 2-4).

    Heads and key-value heads are cloned whole, head_dim is kept; a single key-value head (multi-query) stays single.
    Targets have to be whole multiples of the present sizes.

    Args:
        noise: on the readers, in the null space of the copies, so that the function is kept. Without it (`noise=0.0`) the copies
            get the same gradients in every step and stay equal for good: the large network trains as the small one would.
    """

    name: ClassVar[str] = "hypercloning"
    noise: float = 0.1

    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """A stack of identities. Raises MeristemError for a target that is no whole multiple."""
        old = anatomy.sizes[axis]
        if target % old:
            raise MeristemError(
                f"hypercloning clones whole networks: {axis} cannot go from {old} to {target}; "
                f"{max(1, round(target / old)) * old} would work, or a method for any ratio (lemon)"
            )
        return AxisMap.tile(old, target // old)
