"""Dimensions as products of atoms. Atoms are joined when a pass shows that they run along the same units.

A dimension is a tuple of atoms, outermost first. A view splits an atom into a product (768 into 12 heads of
64). A concatenation or a slice splits it into a sum of dimensions. An addition joins the atoms of its
operands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Dim = tuple[int, ...]  # atoms, outermost first; () for a dimension of size 1
Resolved = tuple["int | tuple[Resolved, ...]", ...]  # sizes of atoms; a tuple for one that is a sum of dimensions


class Space:
    """The atoms of one forward pass."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._factors: dict[int, Dim] = {}
        self._terms: dict[int, tuple[Dim, ...]] = {}

    def fresh(self, size: int) -> Dim:
        """A new dimension."""
        if size == 1:
            return ()
        self._parent.append(len(self._parent))
        self._size.append(size)
        return (len(self._parent) - 1,)

    def find(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def flat(self, dim: Dim) -> Dim:
        """The dimension in terms of atoms that are not products."""
        found: list[int] = []
        for atom in map(self.find, dim):
            found += self.flat(self._factors[atom]) if atom in self._factors else [atom]
        return tuple(found)

    def size(self, dim: Dim) -> int:
        return math.prod(self._size[self.find(atom)] for atom in dim)

    def leaves(self, dim: Dim) -> set[int]:
        """All atoms of a dimension, with those of sums."""
        found: set[int] = set()
        for atom in self.flat(dim):
            inner = [self.leaves(term) for term in self._terms.get(atom, ())]
            found |= set().union(*inner) if inner else {atom}
        return found

    def resolved(self, dim: Dim) -> Resolved:
        """The sizes of its atoms: (12, 64), or ((96,), (96,), (96,)) in the place of an atom for a sum of
        three.
        """
        return tuple(
            tuple(self.resolved(term) for term in self._terms[atom]) if atom in self._terms else self._size[atom]
            for atom in self.flat(dim)
        )

    def products(self, dim: Dim, start: int = 0) -> Iterator[tuple[int, int, Dim]]:
        """(first unit, how many, atoms) of the parts of a dimension that are plain products, or the whole if
        it is one. A sum among the factors of a product (halves of a head that rotary positions rotate)
        counts as one atom that stays as it is.
        """
        atoms = self.flat(dim)
        sums = [atom for atom in atoms if atom in self._terms]
        if sums and len(atoms) == 1:
            for term in self._terms[atoms[0]]:
                yield from self.products(term, start)
                start += self.size(term)
        else:
            yield start, self.size(dim), tuple(self.fresh(self._size[a])[0] if a in sums else a for a in atoms)

    def inside_products(self, dim: Dim) -> set[int]:
        """The leaves of the sums that `products` counts as one atom each."""
        atoms = self.flat(dim)
        sums = [atom for atom in atoms if atom in self._terms]
        if sums and len(atoms) == 1:
            return set().union(*(self.inside_products(term) for term in self._terms[atoms[0]]))
        return set().union(*(self.leaves((atom,)) for atom in sums))

    def join(self, first: Dim, other: Dim) -> None:
        """Both dimensions run along the same units. Parts that cannot be aligned stay as they are."""
        ours, theirs = list(self.flat(first)), list(self.flat(other))
        if self.size(first) != self.size(other):
            return
        while ours and theirs:
            a, b = ours[0], theirs[0]
            if self._size[a] == self._size[b]:
                self._union(a, b)
                ours, theirs = ours[1:], theirs[1:]
                continue
            large, small = (ours, theirs) if self._size[a] > self._size[b] else (theirs, ours)
            if not self._split(large[0], self._size[small[0]]):
                return
            large[:1] = self._factors[large[0]]

    def reshape(self, dims: Sequence[Dim], sizes: Sequence[int]) -> list[Dim]:
        """The dimensions of a view of these sizes."""
        waiting = [atom for dim in dims for atom in self.flat(dim)]
        found: list[Dim] = []
        for size in sizes:
            own: list[int] = []
            while (have := self.size(tuple(own))) < size and waiting:
                need, rest = divmod(size, have)
                if rest:
                    break
                atom = waiting[0]
                if self._size[atom] > need and not self._split(atom, need):
                    break
                if self._size[atom] > need:
                    waiting[:1] = self._factors[atom]
                own.append(waiting.pop(0))
            if self.size(tuple(own)) != size:
                return [self.fresh(s) for s in sizes]
            found.append(tuple(own))
        return found

    def concatenated(self, dims: Sequence[Dim], sizes: Sequence[int]) -> Dim:
        """Dimensions one after another. An empty one (of size 1) is one unit."""
        if len(dims) == 1:
            return dims[0]
        whole = self.fresh(sum(sizes))
        self._terms[whole[0]] = tuple(dims)
        return whole

    def sliced(self, dim: Dim, start: int, end: int) -> Dim:
        """The units from `start` to `end` (exclusive)."""
        atoms: tuple[int, ...] = self.flat(dim)
        if (start, end) == (0, self.size(dim)):
            return dim
        if len(atoms) > 1:
            inner = self.size(atoms[1:])
            if start % inner or end % inner:
                return self.fresh(end - start)
            return self.sliced(atoms[:1], start // inner, end // inner) + atoms[1:]
        parts, place, found = self._cut(next(iter(atoms)), (start, end)), 0, []
        for part in parts:
            if start <= place < end:
                found.append(part)
            place += self.size(part)
        return self.concatenated(found, [self.size(part) for part in found])

    def _cut(self, atom: int, places: Sequence[int]) -> list[Dim]:
        """The terms of an atom, divided at these places too."""
        parts = list(self._terms.get(atom, ((atom,),)))
        found: list[Dim] = []
        before = 0
        for part in parts:
            size = self.size(part)
            ends = sorted({p - before for p in places if before < p < before + size} | {size})
            begins = [0, *ends[:-1]]
            whole = len(ends) == 1
            found += [part] if whole else [self.fresh(e - b) for b, e in zip(begins, ends, strict=True)]
            before += size
        if len(found) > len(parts) or atom in self._terms:
            self._terms[atom] = tuple(found)
        return found

    def _split(self, atom: int, outer: int) -> bool:
        """Make an atom a product of two, the first of size `outer`."""
        if self._size[atom] % outer or atom in self._terms:
            return False
        self._factors[atom] = self.fresh(outer) + self.fresh(self._size[atom] // outer)
        return True

    def _union(self, a: int, b: int) -> None:
        if a == b:
            return
        if a in self._terms and b in self._terms:
            ours, theirs = self._terms[a], self._terms[b]
            if [self.size(d) for d in ours] == [self.size(d) for d in theirs]:
                self._parent[b] = a
                for first, other in zip(ours, theirs, strict=True):
                    self.join(first, other)
                return
            self._refine(a, b)
            return
        root, child = (b, a) if b in self._terms else (a, b)
        self._parent[child] = root

    def _refine(self, a: int, b: int) -> None:
        """Two sums with other terms: each is divided where the other one is."""
        ends = [
            [sum(self.size(d) for d in self._terms[x][: i + 1]) for i in range(len(self._terms[x]))] for x in (a, b)
        ]
        ours, theirs = self._cut(a, ends[1]), self._cut(b, ends[0])
        self._parent[b] = a
        for first, other in zip(ours, theirs, strict=True):
            self.join(first, other)
