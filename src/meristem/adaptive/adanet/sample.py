"""The rows from which a round's candidates learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from meristem.adaptive.adanet.network import Units


@dataclass(frozen=True)
class Sample:
    """The rows from which a candidate learns.

    Args:
        features: Psi (n, features).
        units: the ensemble's activities on these rows.
        offset: the ensemble's outputs f (n, outputs).
        targets: the targets (n, outputs).
        shares: the weights of the rows (n,), whose sum is 1.
        size: m, the number of rows that the weights represent.
    """

    features: Tensor
    units: Units
    offset: Tensor
    targets: Tensor
    shares: Tensor
    size: float

    def read(self, reads: Sequence[Sequence[int]]) -> list[Tensor]:
        """The units of earlier blocks that each layer from the second on reads, joined along the last
        dimension (n, units).
        """
        none = self.features[:, :0]
        return [torch.cat([none, *(self.units[b][below] for b in r)], 1) for below, r in enumerate(reads)]


@dataclass(frozen=True)
class Rows:
    """The tensors of a `Sample` that training reads, in the precision of training. `earlier` is the result of
    `Sample.read`.
    """

    features: Tensor
    earlier: list[Tensor]
    offset: Tensor
    targets: Tensor
    shares: Tensor

    @classmethod
    def of(cls, sample: Sample, reads: Sequence[Sequence[int]], dtype: torch.dtype) -> Rows:
        """The rows of a sample in another precision."""
        parts = (sample.features, sample.offset, sample.targets, sample.shares)
        features, offset, targets, shares = (part.to(dtype) for part in parts)
        return cls(features, [read.to(dtype) for read in sample.read(reads)], offset, targets, shares)

    def chosen(self, index: Tensor) -> Rows:
        """Some of the rows. Their shares are scaled so that the sum is 1."""
        shares = self.shares[index]
        return Rows(
            self.features[index],
            [read[index] for read in self.earlier],
            self.offset[index],
            self.targets[index],
            shares / shares.sum().clamp(min=1e-30),
        )

    def dropped(self, share: float) -> Rows:
        """The same rows, with dropout applied to the units of earlier blocks."""
        return replace(self, earlier=[F.dropout(read, share) for read in self.earlier])
