"""Growth by zero padding with free columns: the start of MSG's masks, which Gesmundo and Maile prove exact.

Yao, Zhang, Li, Wang: "Masked Structural Growth for 2x Faster Language Model Pre-training", ICLR 2024,
arXiv:2305.02869.
Gesmundo, Maile: "Composable Function-preserving Expansions for Transformer Architectures", 2023,
arXiv:2308.06103.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy import Anatomy
from meristem.anatomy.heads import UNITS
from meristem.growth.methods.method import Weights
from meristem.growth.methods.width import NoisyWidthMethod
from meristem.growth.widths.norm_statistics import normed_axes
from meristem.growth.widths.padding import is_padded, padded_heads, padded_hidden


@dataclass(frozen=True)
class ZeroPadding(NoisyWidthMethod):
    """Keep old units, and give new heads and feed-forward units random input weights and output weights of
    zero (arXiv:2305.02869, arXiv:2308.06103).

    Keeps the function of pre-norm networks at any ratio. New hidden units are silent: zero under RMSNorm, and
    the mean of the others under LayerNorm. The weights that read them are random, which does not change the
    function. Nothing is copied, so no symmetry has to be broken. The other options are those of `WidthMethod`
    and `NoisyWidthMethod`.

    Args:
        noise: the standard deviation of the free columns, relative to that of each tensor.
    """

    name: ClassVar[str] = "zero_padding"
    noise: float = 1.0

    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """[I; pad] for the hidden axis. For the others, [I; fresh] to write and [I; 0] to read."""
        old = anatomy.sizes[axis]
        if is_padded(anatomy, axis):
            return padded_hidden(anatomy, axis, target, copies=1)
        if anatomy.axes[axis].kind in UNITS and axis in normed_axes(anatomy):
            return padded_heads(old, target)
        kept = UnitMap.select(torch.arange(target) % old, old, (torch.arange(target) < old).double())
        return AxisMap(
            kept,
            kept,
            gain=UnitMap.select(torch.arange(target) % old, old),
            twins=False,
            fresh=torch.arange(target) >= old,
        )
