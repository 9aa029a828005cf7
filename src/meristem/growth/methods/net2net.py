"""Net2Wider and bert2BERT's function-preserving initialisation (FPI): any target width, by duplicating units.

Chen, Goodfellow, Shlens: "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016, arXiv:1511.05641
(algorithm 1).
Chen et al.: "bert2BERT: Towards Reusable Pretrained Language Models", ACL 2022, arXiv:2110.07143 (FPI,
section 3.2).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.growth.methods.method import Weights
from meristem.growth.methods.width import NoisyWidthMethod


@dataclass(frozen=True)
class Net2Net(NoisyWidthMethod):
    """Copy old units, and divide the weight of their readers among the copies: write 1, read 1 / number of
    copies (arXiv:1511.05641, algorithm 1; FPI of arXiv:2110.07143, section 3.2).

    Keeps the function for feed-forward units and heads at any ratio. Uneven copies of the hidden axis change
    what norms measure. Such a growth only approximates the function. It promises nothing, and the certificate
    states the error. The other options are those of `WidthMethod` and `NoisyWidthMethod`.

    Args:
        noise: as in `NoisyWidthMethod`. With `noise=0.0`, which is FPI, copies get equal gradients and stay
            equal for good, unless dropout separates them.
        duplication: which units get further copies: units drawn at "random" (Net2Net, FPI), or one after
            another ("cyclic").
    """

    name: ClassVar[str] = "net2net"
    noise: float = 0.1
    duplication: Literal["random", "cyclic"] = "random"

    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """Every old unit once, then further copies."""
        return AxisMap.duplicate(
            duplication(axis, anatomy.sizes[axis], target, self.duplication, self.seed), anatomy.sizes[axis]
        )


def duplication(axis: str, old: int, new: int, kind: str, seed: int) -> torch.Tensor:
    """(new,) the source of each unit: all old ones first, then copies in "cyclic" order or drawn for this
    axis.
    """
    if kind == "cyclic":
        return torch.arange(new) % old
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(axis.encode()))
    return torch.cat([torch.arange(old), torch.randint(0, old, (new - old,), generator=generator)])
