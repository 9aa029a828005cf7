"""bert2BERT's advanced knowledge initialisation (AKI): new units come from the next layer.

Chen et al.: "bert2BERT: Towards Reusable Pretrained Language Models", ACL 2022, arXiv:2110.07143 (AKI,
section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.trace import Inputs
from meristem.growth.methods.method import Choices, Weights
from meristem.growth.methods.net2net import duplication
from meristem.growth.methods.width import WidthMethod
from meristem.growth.plans.layers import LayerMap, LayerSource


@dataclass(frozen=True)
class AKI(WidthMethod):
    """Copy units as Net2Net does, but take the further copies in layer l from layer l + 1 (arXiv:2110.07143,
    section 3.3).

    The last layer copies its own units. Does not keep the function, by design: the weights of the next layer
    break the symmetry of the copies. In the last layer, noise does. The other options are those of
    `WidthMethod`.

    Args:
        duplication: which units get further copies, as in `Net2Net`.
        noise: the standard deviation of the noise on readers, relative to that of each tensor. It cancels
            between copies. Without it, copies in the last layer stay copies for good.
        seed: the seed of the choice and of the noise.
    """

    name: ClassVar[str] = "aki"
    preserving: ClassVar[bool] = False
    duplication: Literal["random", "cyclic"] = "random"
    noise: float = 0.1
    seed: int = 0

    def choices(self) -> Choices:
        """The noise on readers."""
        return Choices(noise=self.noise, seed=self.seed)

    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """The map of Net2Net."""
        return AxisMap.duplicate(
            duplication(axis, anatomy.sizes[axis], target, self.duplication, self.seed), anatomy.sizes[axis]
        )

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Every layer stays, and takes its further copies from the next one."""
        return {
            axis: tuple(LayerSource(((i, 1.0),), next_layer=min(i + 1, depth - 1)) for i in range(depth))
            for axis, depth in anatomy.depths.items()
        }

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """Always False."""
        return False
