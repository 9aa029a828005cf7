"""Zero-padding growth with free columns, as MSG starts its masks and Gesmundo & Maile prove exact.

Yao, Zhang, Li, Wang: "Masked Structural Growth for 2x Faster Language Model Pre-training", ICLR 2024, arXiv:2305.02869.
Gesmundo, Maile: "Composable Function-preserving Expansions for Transformer Architectures", 2023, arXiv:2308.06103.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy import Anatomy
from meristem.anatomy.heads import UNITS
from meristem.growth.method import Weights
from meristem.growth.norm_statistics import normed_axes
from meristem.growth.padding import padded_heads, padded_hidden
from meristem.growth.width import NoisyWidthMethod


@dataclass(frozen=True)
class ZeroPadding(NoisyWidthMethod):
    """Old units as they are; new heads and feed-forward units are written at random and read with zero.

    New hidden units are silent (zero, or the mean under LayerNorm) and read at random, which is free. Nothing is copied,
    so there is no symmetry to break.

    Args:
        noise: standard deviation of the free columns, relative to each tensor's.
    """

    name: ClassVar[str] = "zero_padding"
    noise: float = 1.0

    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """[I; pad] for the hidden axis; [I; fresh] to write and [I; 0] to read for the others."""
        old = anatomy.sizes[axis]
        if anatomy.axes[axis].kind == "hidden":
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
