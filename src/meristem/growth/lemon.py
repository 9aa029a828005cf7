"""LEMON: lossless expansion at any ratio, in width and depth.

Wang, Su, Chen, Rao, Zhou, Hsieh: "LEMON: Lossless Model Expansion", ICLR 2024, arXiv:2310.07999.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.growth.depth import identity_layers
from meristem.growth.method import Weights
from meristem.growth.padding import padded_hidden
from meristem.growth.plan import LayerMap
from meristem.growth.targets import depth_targets
from meristem.growth.width import WidthMethod


@dataclass(frozen=True)
class LEMON(WidthMethod):
    """Whole copies as far as they go, the remainder of the hidden axis silent; heads and feed-forward units duplicated.

    Exact for pre-norm networks at any ratio, for post-norm ones at whole ratios. Gains are multiplied by
    sqrt(copies d / d') and the config's eps by its square; where eps is not in the config (OPT, BART) or serves norms of
    another axis too (Qwen3's heads), the error is of the order of eps over the mean square of the activations.

    Args:
        num_hidden_layers: target depth; new layers are identity blocks behind the layer that they copy.
        noise: symmetry-breaking noise on readers, in the null space; it also wakes the silent units.
        seed: of the noise.
        tied: "keep" a tied head where that is possible (zero padding, whole copies), or "untie" it.
    """

    name: ClassVar[str] = "lemon"
    num_hidden_layers: int | None = None
    noise: float = 0.1
    seed: int = 0
    tied: Literal["keep", "untie"] = "keep"

    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """Padding for the hidden axis, cyclic duplication for the others."""
        old = anatomy.sizes[axis]
        if axis == "hidden":
            return padded_hidden(anatomy, axis, target, copies=target // old)
        return AxisMap.duplicate(torch.arange(target) % old, old)

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Identity blocks, spread evenly."""
        targets = depth_targets(anatomy, self.name, num_hidden_layers=self.num_hidden_layers)
        return {axis: identity_layers(anatomy, axis, target) for axis, target in targets.items()}

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module) -> bool:
        """Unless norms stand in the way (see `norms_are_kept`)."""
        from meristem.growth.method import blocks_can_be_silent

        deeper = bool(self.layer_maps(anatomy))
        return super().promises(anatomy, maps, model) and (not deeper or blocks_can_be_silent(anatomy, model))
