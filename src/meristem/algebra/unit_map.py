"""One linear map from the old units of an axis to the new ones.

Most maps give each new unit a single source. They are stored as an index and a coefficient, and cost one
`index_select`. A dense matrix is kept only if a new unit mixes several old ones (mean padding, LiGO, fusion
heads). Entries are float64: 1/3 is rounded once, in the dtype of the tensor to which it is applied.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MOST_RUNS = 64  # of consecutive units that are copied whole


@dataclass(frozen=True, eq=False)
class UnitMap:
    """A matrix of shape (new size, old size), stored as `index` and `coefficient` or as `dense`.

    `identity`, `select` and `from_matrix` make it.
    """

    old_size: int
    index: Tensor | None = None  # (new_size,) long: the source of each new unit
    coefficient: Tensor | None = None  # (new_size,) float64: its weight; 0 means "no source"
    dense: Tensor | None = None  # (new_size, old_size) float64

    @staticmethod
    def identity(size: int) -> UnitMap:
        """The identity of shape (size, size)."""
        return UnitMap.select(torch.arange(size), size)

    @staticmethod
    def select(index: Tensor, old_size: int, coefficient: Tensor | float = 1.0) -> UnitMap:
        """Set new unit i to `coefficient[i]` times old unit `index[i]`.

        Args:
            index: (new size,) the source of each new unit.
            old_size: the number of old units.
            coefficient: (new size,) numbers, or one number for all.

        Raises:
            ValueError: if an index is outside the old axis.
        """
        index = torch.as_tensor(index, dtype=torch.long)
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < old_size):
            raise ValueError(f"unit index {index.tolist()} reaches outside an axis of {old_size} units")
        coefficient = torch.as_tensor(coefficient, dtype=torch.float64).expand(index.shape)
        return UnitMap(old_size, index=index, coefficient=coefficient)

    @staticmethod
    def from_matrix(matrix: Tensor) -> UnitMap:
        """Any matrix of shape (new size, old size). It is stored sparsely if every row has at most one entry
        that is not zero.
        """
        matrix = matrix.to(torch.float64)
        if matrix.shape[1] and int((matrix != 0).sum(1).max()) <= 1:
            index = matrix.abs().argmax(1)
            return UnitMap.select(index, matrix.shape[1], matrix.gather(1, index[:, None])[:, 0])
        return UnitMap(matrix.shape[1], dense=matrix)

    @property
    def new_size(self) -> int:
        """The number of new units."""
        return len(self.dense) if self.dense is not None else len(self._index)

    @property
    def _index(self) -> Tensor:
        assert self.index is not None
        return self.index

    @property
    def _coefficient(self) -> Tensor:
        assert self.coefficient is not None
        return self.coefficient

    def matrix(self) -> Tensor:
        """The dense float64 matrix of shape (new size, old size)."""
        if self.dense is not None:
            return self.dense
        matrix = torch.zeros(self.new_size, self.old_size, dtype=torch.float64)
        return matrix.scatter_(1, self._index[:, None], self._coefficient[:, None])

    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return (
            self.dense is None
            and self.new_size == self.old_size
            and bool((self._index == torch.arange(self.old_size)).all())
            and bool((self._coefficient == 1).all())
        )

    def apply(self, tensor: Tensor, dim: int) -> Tensor:
        """Map dimension `dim` of `tensor` from the old size to the new one. The dtype and the device of
        `tensor` stay.
        """
        if self.dense is not None:
            matrix = self.dense.to(tensor.device, tensor.dtype)
            return (tensor.movedim(dim, -1) @ matrix.T).movedim(-1, dim)
        grown = self.gather(tensor, dim)
        return grown if self.copies_only else grown * _along(self._coefficient, tensor, dim)

    def scale_sources(self, tensor: Tensor, dim: int) -> Tensor:
        """The old units times `source_factor`. Followed by `gather` it equals `apply` exactly."""
        assert self.source_factor is not None
        return tensor if self.copies_only else tensor * _along(self.source_factor, tensor, dim)

    def gather(self, tensor: Tensor, dim: int) -> Tensor:
        """The source of each new unit along `dim`, without its coefficient. Runs of consecutive units are
        copied whole.
        """
        runs = self.runs
        if runs is None:
            return tensor.index_select(dim, self._index.to(tensor.device))
        parts = [tensor.narrow(dim, start, length) for start, length in runs]
        return parts[0].clone() if len(parts) == 1 else torch.cat(parts, dim)

    def old_rows(self, first: int, last: int) -> UnitMap:
        """The old units from `first` to `last` (exclusive), each once, with the factor that their copies
        share.
        """
        assert self.source_factor is not None
        return UnitMap.select(torch.arange(last - first), last - first, self.source_factor[first:last])

    @cached_property
    def copies_only(self) -> bool:
        """Whether every new unit is its source, without a factor."""
        return self.dense is None and bool((self._coefficient == 1).all())

    @cached_property
    def source_factor(self) -> Tensor | None:
        """(old size,) float64: the coefficient of each old unit, if all its copies have the same. None
        otherwise.

        The map is then a product: scale the old units, and gather.
        """
        if self.dense is not None:
            return None
        factor = torch.ones(self.old_size, dtype=torch.float64).scatter_(0, self._index, self._coefficient)
        return factor if torch.equal(factor[self._index], self._coefficient) else None

    @cached_property
    def runs(self) -> list[tuple[int, int]] | None:
        """(first, length) of the runs of consecutive sources. None if there are too many for this to be
        faster, or if there are no sources.
        """
        if self.dense is not None:
            return None
        breaks = torch.nonzero(self._index[1:] != self._index[:-1] + 1).flatten() + 1
        if not len(self._index) or len(breaks) > MOST_RUNS:
            return None
        bounds = [0, *breaks.tolist(), len(self._index)]
        return [(int(self._index[i]), j - i) for i, j in itertools.pairwise(bounds)]

    @cached_property
    def repeated(self) -> tuple[int, tuple[int, int]] | None:
        """Whether the new units are the old ones several times.

        (0, (times, old size)) if whole copies follow one another. (1, (old size, times)) if the copies of
        each unit are neighbours. The new axis unflattens to these sizes. None in other cases.
        """
        if self.dense is not None or not self.old_size or self.new_size % self.old_size or not self.new_size:
            return None
        times, old = self.new_size // self.old_size, torch.arange(self.old_size)
        if torch.equal(self._index, old.repeat(times)):
            return 0, (times, self.old_size)
        return (1, (self.old_size, times)) if torch.equal(self._index, old.repeat_interleave(times)) else None

    @cached_property
    def carriers(self) -> Tensor | None:
        """(old size, most copies) the new units that carry each old one, in ascending order, padded with -1.
        None if a coefficient is not 1.
        """
        if self.dense is not None or not bool(((self._coefficient == 0) | (self._coefficient == 1)).all()):
            return None
        carrying = torch.nonzero(self._coefficient).flatten()
        sources = self._index[carrying]
        order = torch.argsort(sources, stable=True)
        counts = torch.bincount(sources, minlength=self.old_size)
        table = torch.full((self.old_size, max(1, int(counts.max()))), -1)
        place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[sources[order]]
        table[sources[order], place] = carrying[order]
        return table

    def transposed_apply(self, tensor: Tensor, dim: int) -> Tensor:
        """Map dimension `dim` of `tensor` from the new size back to the old one, by the transposed matrix."""
        if self.dense is not None:
            return UnitMap(self.new_size, dense=self.dense.T).apply(tensor, dim)
        if self.copies_only and self.repeated is not None:
            along, sizes = self.repeated
            parts = list(tensor.unflatten(dim, sizes).unbind(dim % tensor.dim() + along))
            return functools.reduce(torch.add, parts) if len(parts) > 1 else parts[0].clone()
        weighted = tensor * _along(self._coefficient, tensor, dim)
        size = list(tensor.shape)
        size[dim] = self.old_size
        return weighted.new_zeros(size).index_add_(dim, self._index.to(tensor.device), weighted)

    def after(self, first: UnitMap) -> UnitMap:
        """The composition: apply `first`, then this map."""
        if self.dense is None and first.dense is None:
            index, coefficient = first._index[self._index], first._coefficient[self._index] * self._coefficient
            return UnitMap.select(index, first.old_size, coefficient)
        return UnitMap(first.old_size, dense=self.matrix() @ first.matrix())

    def kron(self, inner: UnitMap) -> UnitMap:
        """The map of an axis whose units are pairs (unit of self, unit of inner), with `inner` varying
        fastest.
        """
        if self.dense is None and inner.dense is None:
            index = self._index[:, None] * inner.old_size + inner._index[None]
            coefficient = self._coefficient[:, None] * inner._coefficient[None]
            return UnitMap.select(index.flatten(), self.old_size * inner.old_size, coefficient.flatten())
        return UnitMap(self.old_size * inner.old_size, dense=torch.kron(self.matrix(), inner.matrix()))

    def direct_sum(self, other: UnitMap) -> UnitMap:
        """The map of two axes, one after the other."""
        if self.dense is None and other.dense is None:
            index = torch.cat([self._index, other._index + self.old_size])
            return UnitMap.select(
                index, self.old_size + other.old_size, torch.cat([self._coefficient, other._coefficient])
            )
        return UnitMap(self.old_size + other.old_size, dense=torch.block_diag(self.matrix(), other.matrix()))

    def squared(self) -> UnitMap:
        """The map with every entry squared, which second moments follow."""
        return self._entrywise(torch.square)

    def absolute(self) -> UnitMap:
        """The map with the absolute value of every entry."""
        return self._entrywise(torch.abs)

    def signs(self) -> UnitMap:
        """The map with 1, -1 or 0 for the sign of every entry."""
        return self._entrywise(torch.sign)

    def _entrywise(self, change: Callable[[Tensor], Tensor]) -> UnitMap:
        if self.dense is not None:
            return UnitMap(self.old_size, dense=change(self.dense))
        return UnitMap.select(self._index, self.old_size, change(self._coefficient))

    def power_sums(self, power: int) -> Tensor:
        """(old size,) float64: for each old unit, the sum of the powers of its coefficients in all new
        units.
        """
        if self.dense is not None:
            return (self.dense**power).sum(0)
        sums = torch.zeros(self.old_size, dtype=torch.float64)
        return sums.index_add_(0, self._index, self._coefficient**power)

    def sourceless(self) -> Tensor:
        """(new size,) bool: the new units that carry nothing."""
        if self.dense is not None:
            return (self.dense == 0).all(1)
        return self._coefficient == 0

    def further_copies(self) -> Tensor:
        """(new size,) bool: the units whose source an earlier unit carries already."""
        first = torch.full((self.old_size,), self.new_size).scatter_reduce(
            0, self._index, torch.arange(self.new_size), reduce="amin"
        )
        return first[self._index] != torch.arange(self.new_size)

    def gram_factor(self) -> float | None:
        """c if matrix^T . matrix = c I, and None otherwise."""
        if self.dense is None:  # every new unit has one source, so the gram matrix is diagonal
            diagonal = torch.zeros(self.old_size, dtype=torch.float64).index_add_(0, self._index, self._coefficient**2)
            c = float(diagonal[0])
            return c if torch.allclose(diagonal, diagonal[0], atol=1e-12) else None
        gram = self.dense.T @ self.dense
        c = float(gram[0, 0])
        return c if torch.allclose(gram, c * torch.eye(self.old_size, dtype=torch.float64), atol=1e-12) else None

    def amplitude(self) -> float:
        """The mean absolute value of the entries that are not zero: 1 for copies, 1/n for a reader of n
        copies.
        """
        entries = (self.dense if self.dense is not None else self._coefficient).abs()
        return float(entries[entries > 0].mean()) if bool((entries > 0).any()) else 0.0


def _along(factor: Tensor, tensor: Tensor, dim: int) -> Tensor:
    """`factor` with as many dimensions as `tensor`, along `dim`, with its dtype and device."""
    shape = [1] * tensor.dim()
    shape[dim] = -1
    return factor.to(tensor.device, tensor.dtype).view(shape)
