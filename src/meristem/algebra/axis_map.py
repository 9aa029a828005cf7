"""The pair of maps that grows an axis: `write` for what new units carry, `read` for how they are read.

    W' = write_out . W . read_in^T  +  Z . (I - write_in . read_in^T)

keeps the function exactly when read^T . write = I on every axis, for any Z. Gradients, and with them Adam's
first moment, follow the dual pair: g' = read_out . g . write_in^T. (Meristem design, section 1. For uniform
copies this is HyperCloning, Samragh et al. 2024, arXiv:2409.12903, and its duals are the table of
`docs/theory.md`.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from meristem.algebra.unit_map import UnitMap


@dataclass(frozen=True, eq=False)
class AxisMap:
    """How one axis changes size, as a pair of linear maps from old units to new ones.

    `write` and `read` are enough for copies. Padding under a norm also needs `gain` and `heard`. The function
    is kept if read^T . write = I.

    Args:
        write: (new size, old size), what each new unit carries.
        read: (new size, old size), the weight with which it is read.
        gain: the old unit whose per-feature factor (gain of a norm) it takes. By default `write`.
        heard: what readers after a norm receive from it. By default `write`. For a unit padded with the mean
            it is zero.
        twins: whether new units carry exactly `write . old`, so that noise on their readers can cancel. Heads
            under ALiBi do not, because copies attend with other slopes. They get no noise.
        fresh: (new size,) bool, the units without a source that nothing reads. Their weights may be random.
        filled: give units without a source the mean of the old ones (new tokens) instead of zero.
        norm_factor: the root mean square of the new units over that of the old ones. Norms divide by it.

    Raises:
        ValueError: if `write` and `read` differ in the old or the new size.
    """

    write: UnitMap
    read: UnitMap
    gain: UnitMap = None  # pyright: ignore[reportAssignmentType]: filled in below
    heard: UnitMap = None  # pyright: ignore[reportAssignmentType]
    twins: bool = True
    fresh: Tensor | None = None
    filled: bool = False
    norm_factor: float = 1.0

    def __post_init__(self) -> None:
        if (self.write.old_size, self.write.new_size) != (self.read.old_size, self.read.new_size):
            raise ValueError(
                f"write maps {self.write.old_size} -> {self.write.new_size} units, "
                f"but read maps {self.read.old_size} -> {self.read.new_size}"
            )
        object.__setattr__(self, "gain", self.gain or self.write)
        object.__setattr__(self, "heard", self.heard or self.write)

    @staticmethod
    def identity(size: int) -> AxisMap:
        """The map that changes nothing."""
        return AxisMap(UnitMap.identity(size), UnitMap.identity(size))

    @staticmethod
    def select(index: Tensor, old_size: int) -> AxisMap:
        """Keep the units of `index` and drop the others (weight selection, sub-networks).

        Args:
            index: (new size,) the old unit that each new one is.
            old_size: the number of old units.

        Raises:
            ValueError: if an index is outside the old axis.
        """
        rows = UnitMap.select(index, old_size)
        return AxisMap(rows, rows)

    @staticmethod
    def duplicate(index: Tensor, old_size: int) -> AxisMap:
        """Copy old unit `index[i]` to new unit i. The copies of a unit divide the weight of its reader
        equally (Net2Wider, FPI).

        Args:
            index: (new size,) the old unit that each new one copies.
            old_size: the number of old units.

        Raises:
            ValueError: if an index is outside the old axis, or if an old unit has no copy, because its value
                would be lost.
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

    @staticmethod
    def spaced(old_size: int, times: int) -> AxisMap:
        """Move old unit i to new unit `times` . i. Nothing reads the other new units.

        Sinusoidal positions of `times` the width have the old frequencies at exactly these places, 10000^(-i
        / d) = 10000^(-times i / (times d)), and new ones between them.
        """
        index = torch.arange(old_size * times) // times
        places = UnitMap.select(index, old_size, (torch.arange(old_size * times) % times == 0).double())
        return AxisMap(places, places, twins=False)

    def rest(self, skipped: int) -> AxisMap:
        """The map of the units after the first `skipped`, which do not move. Copies of later units are not
        read.

        Raises:
            ValueError: if the first units move.
        """
        kept = self.write.matrix()[:skipped]
        if not torch.equal(kept, torch.eye(skipped, self.old_size, dtype=torch.float64)):
            raise ValueError(f"the first {skipped} units have to keep their positions")
        write = self.write.matrix()[skipped:, skipped:]
        read = self.read.matrix()[skipped:, skipped:]
        return AxisMap(UnitMap.from_matrix(write), UnitMap.from_matrix(read), twins=False)

    @property
    def old_size(self) -> int:
        """The number of old units."""
        return self.write.old_size

    @property
    def new_size(self) -> int:
        """The number of new units."""
        return self.write.new_size

    @property
    def dual(self) -> AxisMap:
        """The pair that gradients follow: `read` to write, and `write` to read."""
        return AxisMap(self.read, self.write)

    def after(self, first: AxisMap) -> AxisMap:
        """The composition: grow by `first`, then by this map."""
        return self._combine(first, UnitMap.after, lambda ours, theirs: ours)

    def kron(self, inner: AxisMap) -> AxisMap:
        """The map of an axis whose units are pairs, with `inner` varying fastest."""
        return self._combine(inner, UnitMap.kron, lambda ours, theirs: (ours[:, None] | theirs[None]).flatten())

    def direct_sum(self, other: AxisMap) -> AxisMap:
        """The map of two axes, one after the other."""
        return self._combine(other, UnitMap.direct_sum, lambda ours, theirs: torch.cat([ours, theirs]))

    def _combine(
        self,
        other: AxisMap,
        combine: Callable[[UnitMap, UnitMap], UnitMap],
        combine_masks: Callable[[Tensor, Tensor], Tensor],
    ) -> AxisMap:
        fresh = None
        if self.fresh is not None or other.fresh is not None:
            fresh = combine_masks(*(_mask(m.fresh, m.new_size) for m in (self, other)))
        return AxisMap(
            combine(self.write, other.write),
            combine(self.read, other.read),
            combine(self.gain, other.gain),
            combine(self.heard, other.heard),
            self.twins and other.twins,
            fresh,
            self.filled or other.filled,
            self.norm_factor * other.norm_factor,
        )

    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return self.write.is_identity() and self.read.is_identity()

    def is_uniform(self) -> bool:
        """Whether every old unit has the same number of copies and nothing else was added. Norms then measure
        what they did.
        """
        return self.twin_gram() is not None and self.norm_factor == 1 and not bool(self.write.sourceless().any())

    @cached_property
    def even_shares(self) -> tuple[int, tuple[int, int]] | None:
        """The order of the copies (`UnitMap.repeated`), if every unit is copied as it is and every copy is
        read with the same weight 1 / n. None otherwise.
        """
        times = self.new_size // max(1, self.old_size)
        if not self.twins or not self.heard.copies_only or times < 2 or self.heard.repeated is None:
            return None
        coefficient = self.read.coefficient
        alike = self.read.repeated == self.heard.repeated and coefficient is not None
        return self.heard.repeated if alike and bool((coefficient == 1 / times).all()) else None

    @cached_property
    def gain_dual(self) -> UnitMap:
        """The map that the gradient of a per-feature factor follows.

        New unit i has w_i times the value of its source and g_i times its factor. So the value that its
        factor multiplies is w_i / g_i times that of the source. The gradient of its value is r_i times that
        of the source. The product is r_i w_i / g_i, which for copies is r_i.
        """
        read, gain = self.read, self.gain
        if read.index is None or gain.index is None or gain.coefficient is None or read.coefficient is None:
            return read
        written = self.write.matrix().gather(1, read.index[:, None])[:, 0]
        heard = (read.coefficient != 0) & (gain.coefficient != 0)
        factor = torch.where(heard, written / torch.where(heard, gain.coefficient, 1.0), 1.0)
        return UnitMap.select(read.index, self.old_size, read.coefficient * factor)

    @property
    def padded_with_mean(self) -> bool:
        """Whether new units carry a mean of old ones, which readers after a norm do not receive."""
        return self.heard is not self.write

    def copied(self) -> AxisMap:
        """The map that copies units in turn where this map pads, for an axis of the same size that no norm
        measures.
        """
        return AxisMap.duplicate(torch.arange(self.new_size) % self.old_size, self.old_size)

    def preservation_error(self) -> float:
        """max |read^T . write - I|. Zero if the growth of this axis keeps the function."""
        product = self.read.transposed_apply(self.write.matrix(), 0)
        return float((product - torch.eye(self.old_size, dtype=torch.float64)).abs().max())

    def project_noise(self, noise: Tensor, dim: int) -> Tensor:
        """The part of `noise` that does not change the output: Z . (I - heard . read^T) along `dim`.

        Args:
            noise: Z, with `new_size` entries along `dim`.
            dim: the dimension of the axis.
        """
        if not self.twins:
            return torch.zeros_like(noise)
        heard = self.heard.transposed_apply(noise, dim)
        return noise - self.read.apply(heard, dim)

    def tied_factor(self) -> float | None:
        """The factor by which a tied head changes its output, because it reads with the writer's map instead
        of `read`. None if it is not one number.
        """
        if self.new_size >= self.old_size:
            return self.twin_gram()
        heard, read = self.heard.matrix(), self.read.matrix()
        kept = read != 0
        if not torch.equal(heard != 0, kept):
            return None
        factors = heard[kept] / read[kept]
        return float(factors[0]) if torch.allclose(factors, factors[0]) else None

    def twin_gram(self) -> float | None:
        """c if heard^T . write = c I, and None otherwise. A tied head, which reads with the writer's map,
        multiplies its output by c.
        """
        if self.heard is self.write:
            return self.write.gram_factor()
        gram = self.heard.transposed_apply(self.write.matrix(), 0)
        c = float(gram[0, 0])
        return c if torch.allclose(gram, c * torch.eye(self.old_size, dtype=torch.float64), atol=1e-12) else None


def _mask(given: Tensor | None, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool) if given is None else given
