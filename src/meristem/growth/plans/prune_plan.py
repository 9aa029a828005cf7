"""A plan for pruning: every group of units keeps its own choice, and readers read only the units that stay.

An axis runs through many layers, whose units can be permuted layer by layer (`symmetries.py`). So the units
of each group are first permuted so that the axis keeps the chosen ones. Then all tensors are cut in the same
way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy.tracing.space import Dim, Space
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.tensor_plan import Drawn, TensorPlan

Dims = Mapping[str, list[Dim]]  # of every tensor of the source, in the space of a watched pass
Place = tuple[str, int]  # (tensor of the source, dimension)


@dataclass(frozen=True)
class PrunePlan(GrowthPlan):
    """A plan in which every group of units is permuted before the cut.

    Attributes:
        orders: {(tensor of the source, dimension): the unit that moves to each place before the cut}.
        mixtures: {(tensor of the source, dimension): (old, new) how old units are combined from those that
            stay, for its reader}.
        measured: tensors of the new network whose values were measured on data (statistics of batch norms).
    """

    orders: Mapping[Place, Tensor] = field(default_factory=dict)
    mixtures: Mapping[Place, Tensor] = field(default_factory=dict)
    measured: Mapping[str, Tensor] = field(default_factory=dict)

    @functools.cached_property
    def tensors(self) -> dict[str, TensorPlan]:
        """As `GrowthPlan.tensors`, each with the order of its own units."""
        return {name: self._ordered(plan) for name, plan in super().tensors.items()}

    def _ordered(self, plan: TensorPlan) -> TensorPlan:
        first = plan.terms[0].source
        source = self.source.tensors[first].tied_to or first
        if plan.name in self.measured:
            values = self.measured[plan.name]
            return replace(plan, drawn=Drawn(tuple(values.shape), 0.0, values=values))
        maps = tuple(self._map((source, place), own, plan.roles[place]) for place, own in enumerate(plan.maps))
        return replace(plan, maps=maps)

    def _map(self, place: Place, own: AxisMap | None, role: str) -> AxisMap | None:
        order = self.orders.get(place)
        if order is None or own is None:
            return own
        kept = order[own.write.index]  # pyright: ignore[reportOptionalSubscript]
        mixture = self.mixtures.get(place)
        rows = UnitMap.select(kept, own.old_size)
        if mixture is None or role != "read":
            return AxisMap(rows, rows, twins=False)
        return AxisMap(rows, UnitMap.from_matrix(mixture.T), twins=False)


def kept_places(space: Space, dim: Dim, kept: Tensor) -> dict[int, Tensor]:
    """{atom: its places that stay}, for a dimension in which these units stay. Only atoms in which the same
    places stay everywhere.

    Args:
        space: the atoms of the watched pass.
        dim: the dimension.
        kept: the units along the dimension that stay, in ascending order.
    """
    found: dict[int, Tensor] = {}
    uneven: set[int] = set()
    for start, length, atoms in space.products(dim):
        own = kept[(kept >= start) & (kept < start + length)] - start
        sizes = [space.size((atom,)) for atom in atoms]
        counted = 1
        for atom, indices in zip(atoms, torch.unravel_index(own, sizes), strict=True):
            places = indices.unique()
            counted *= len(places)
            if atom in found and not torch.equal(found[atom], places):
                uneven.add(atom)
            found[atom] = places
        if counted != len(own):  # no product of places
            uneven |= set(atoms)
    return {atom: places for atom, places in found.items() if atom not in uneven}


def ordered(space: Space, dim: Dim, orders: Mapping[int, Tensor]) -> Tensor | None:
    """(n,) the unit that moves to each place along a dimension when its groups of units are put in these
    orders. None if none moves.
    """
    parts: list[Tensor] = []
    moved = False
    for start, length, atoms in space.products(dim):
        part = torch.zeros(1, dtype=torch.long)
        for atom in atoms:
            size = space.size((atom,))
            moved |= atom in orders
            part = (part[:, None] * size + orders.get(atom, torch.arange(size))[None]).flatten()
        parts.append(part + start)
        assert len(part) == length
    return torch.cat(parts) if moved else None


def in_groups(space: Space, dim: Dim, values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(atom, its share) of values along a dimension: the sum over everything else at each unit of the
    atom.
    """
    for start, length, atoms in space.products(dim):
        sizes = [space.size((atom,)) for atom in atoms]
        part = values[start : start + length].reshape(sizes)
        for place, atom in enumerate(atoms):
            yield atom, part.movedim(place, 0).flatten(1).sum(1) if len(sizes) > 1 else part
