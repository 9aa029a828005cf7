"""The pair of maps that grows an axis: `write` for what new units carry, `read` for how they are consumed.

    W' = write_out . W . read_in^T  +  Z . (I - write_in . read_in^T)

preserves the function exactly when read^T . write = I on every axis, whatever Z is; gradients, and with them Adam's
first moment, follow the dual pair, g' = read_out . g . write_in^T. (Meristem design, section 1; for uniform copies this
is HyperCloning, Samragh et al. 2024, arXiv:2409.12903, and its duals are the table of `docs/theory.md`.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meristem.algebra.unit_map import UnitMap


@dataclass(frozen=True, eq=False)
class AxisMap:
    """How one axis changes size: two maps from its old units to its new ones.

    `twins` says that the units really carry `write . old`, so that noise on their readers can cancel; heads under ALiBi
    do not (copies attend with other slopes), and get no noise.

    Raises:
        ValueError: if `write` and `read` disagree about the old or the new size.
    """

    write: UnitMap
    read: UnitMap
    twins: bool = True

    def __post_init__(self) -> None:
        if (self.write.old_size, self.write.new_size) != (self.read.old_size, self.read.new_size):
            raise ValueError(
                f"write maps {self.write.old_size} -> {self.write.new_size} units, "
                f"but read maps {self.read.old_size} -> {self.read.new_size}"
            )

    @staticmethod
    def identity(size: int) -> AxisMap:
        return AxisMap(UnitMap.identity(size), UnitMap.identity(size))

    @staticmethod
    def duplicate(index: Tensor, old_size: int) -> AxisMap:
        """New unit i copies old unit `index[i]`; the copies of a unit share its reader equally (Net2Wider, FPI).

        Raises:
            ValueError: if an old unit has no copy, since its value would be lost.
        """
        index = torch.as_tensor(index, dtype=torch.long)
        copies = torch.bincount(index, minlength=old_size)
        if int(copies.min()) == 0:
            raise ValueError(f"old units {torch.nonzero(copies == 0).flatten().tolist()} have no copy")
        return AxisMap(UnitMap.select(index, old_size), UnitMap.select(index, old_size, 1.0 / copies[index].double()))

    @staticmethod
    def tile(old_size: int, times: int) -> AxisMap:
        """`times` stacked identities (HyperCloning)."""
        return AxisMap.duplicate(torch.arange(old_size).repeat(times), old_size)

    @property
    def old_size(self) -> int:
        return self.write.old_size

    @property
    def new_size(self) -> int:
        return self.write.new_size

    @property
    def dual(self) -> AxisMap:
        """The pair that gradients ride."""
        return AxisMap(self.read, self.write, self.twins)

    def after(self, first: AxisMap) -> AxisMap:
        """Composition: grow by `first`, then by this map."""
        return AxisMap(self.write.after(first.write), self.read.after(first.read), self.twins and first.twins)

    def kron(self, inner: AxisMap) -> AxisMap:
        return AxisMap(self.write.kron(inner.write), self.read.kron(inner.read), self.twins and inner.twins)

    def direct_sum(self, other: AxisMap) -> AxisMap:
        return AxisMap(self.write.direct_sum(other.write), self.read.direct_sum(other.read), self.twins and other.twins)

    def is_identity(self) -> bool:
        return self.write.is_identity() and self.read.is_identity()

    def preservation_error(self) -> float:
        """max |read^T . write - I|: zero when the growth of this axis keeps the function."""
        product = self.read.transposed_apply(self.write.matrix(), 0)
        return float((product - torch.eye(self.old_size, dtype=torch.float64)).abs().max())

    def project_noise(self, noise: Tensor, dim: int) -> Tensor:
        """The part of `noise` that readers of this axis cannot hear: Z . (I - write . read^T) along `dim`.

        Args:
            noise: Z, with `new_size` entries along `dim`.
        """
        if not self.twins:
            return torch.zeros_like(noise)
        heard = self.write.transposed_apply(noise, dim)
        return noise - self.read.apply(heard, dim)

    def twin_gram(self) -> float | None:
        """c where write^T . write = c I, else None: what a tied head, which reads with the writer's map, multiplies by."""
        gram = self.write.transposed_apply(self.write.matrix(), 0)
        c = float(gram[0, 0])
        return c if torch.allclose(gram, c * torch.eye(self.old_size, dtype=torch.float64), atol=1e-12) else None
