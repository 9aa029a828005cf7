"""Which units of a network can be permuted without changing its function: its permutation symmetries, from
one forward pass.

Hidden units that some tensors write and others read can be permuted, if all these tensors are permuted in the
same way. Heads are permuted whole, and the two halves of a concatenation separately. The inputs and outputs
of the network keep their order, and so does everything that is looked up by number (tokens, positions,
experts).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from meristem.anatomy.inputs import outputs_of
from meristem.anatomy.modes import evaluating
from meristem.anatomy.trace import run_watched
from meristem.anatomy.tracing.space import Dim
from meristem.anatomy.tracing.watch import Watch
from meristem.certificates import relative_error
from meristem.errors import MeristemError

Permutations = dict[int, Tensor]  # group -> for each new place, the old unit


@dataclass(frozen=True)
class Piece:
    """A part of a tensor that is a plain product of units: (start, length) along each of its dimensions, its
    shape with an axis for each kind of unit, and the group of each such axis (None: it is not permuted).
    """

    name: str
    place: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]
    groups: tuple[int | None, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """The part, with one axis for each kind of unit."""
        for dimension, (start, length) in enumerate(self.place):
            tensor = tensor.narrow(dimension, start, length)
        return tensor.reshape(self.shape)

    def dimension(self, axis: int) -> int:
        """The dimension of the tensor of which an axis of the shape is a factor."""
        units, dimension = 1, 0
        for place, size in enumerate(self.shape):
            while units == self.place[dimension][1]:
                units, dimension = 1, dimension + 1
            if place == axis:
                break
            units *= size
        return dimension

    def permuted(self, part: Tensor, permutations: Mapping[int, Tensor], besides: int | None = None) -> Tensor:
        """The part with its units in their new places, except along the axis `besides`."""
        for axis, group in enumerate(self.groups):
            if group is not None and group in permutations and axis != besides:
                part = part.index_select(axis, permutations[group].to(part.device))
        return part


@dataclass(frozen=True)
class Symmetries:
    """The pieces of all tensors, and the size of every group of units that can be permuted."""

    pieces: tuple[Piece, ...]
    sizes: Mapping[int, int]

    def apply(self, state: Mapping[str, Tensor], permutations: Permutations) -> dict[str, Tensor]:
        """The same network with permuted units. A parameter with several names moves under all of them."""
        found = {name: tensor.clone() for name, tensor in state.items()}
        for piece in self.pieces:
            if any(group in permutations for group in piece.groups):
                part = piece.permuted(piece.of(state[piece.name]), permutations)
                target = found[piece.name]
                for dimension, (start, length) in enumerate(piece.place):
                    target = target.narrow(dimension, start, length)
                target.copy_(part.reshape(target.shape))
        first: dict[tuple, str] = {}
        known = {piece.name for piece in self.pieces}
        for name in sorted(state, key=lambda name: name not in known):
            tensor = state[name]
            found[name] = found[first.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)]
        return found


def watched_symmetries(
    model: nn.Module, inputs: Mapping[str, Any], watch: Watch | None = None
) -> tuple[Symmetries, Watch]:
    """What a pass of `model` on these inputs shows.

    Args:
        model: the network.
        inputs: keyword arguments of forward.
        watch: a watch that records more than the dimensions. A plain one by default.

    Raises:
        MeristemError: if there is nothing to permute.
    """
    watch = watch or Watch(model)
    found = _symmetries(watch, watched(model, inputs, watch))
    if not found.sizes:
        raise MeristemError(
            f"{type(model).__name__} has no hidden units that can be permuted, so there is nothing to align"
        )
    return found, watch


def watched(model: nn.Module, inputs: Mapping[str, Any], watch: Watch) -> list[Tensor]:
    """Run the network under a watch, and return its inputs and outputs."""
    ends: list[Tensor] = []

    def keep(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        ends.extend(value for value in tree_iter((args, kwargs, output)) if isinstance(value, Tensor))

    def hooks() -> list[Any]:
        return [*watch.hooks(model), model.register_forward_hook(keep, with_kwargs=True)]

    with watch:
        run_watched(model, hooks, inputs)
    return ends


def proved(symmetries: Symmetries, model: nn.Module, inputs: Mapping[str, Any]) -> Symmetries:
    """Those of the groups whose permutation really does not change the outputs on these inputs.

    A part that a watched pass does not follow (a kernel of several products in one) may depend on the order
    of a group.
    """

    def holds(groups: Iterable[int]) -> bool:
        moved, orders = copy.deepcopy(model), {g: torch.arange(symmetries.sizes[g]).flip(0) for g in groups}
        state = symmetries.apply(model.state_dict(), orders)
        for name, tensor in moved.state_dict().items():
            tensor.copy_(state[name])
        ours, theirs = outputs_of(model, inputs), outputs_of(moved, inputs)
        return max(relative_error(ours[n], theirs[n]) for n in ours) < 1e-2

    with evaluating(model):
        if holds(symmetries.sizes):
            return symmetries
        kept = {group: size for group, size in symmetries.sizes.items() if holds([group])}
    pieces = (replace(p, groups=tuple(g if g in kept else None for g in p.groups)) for p in symmetries.pieces)
    return Symmetries(tuple(pieces), kept)


def _symmetries(watch: Watch, ends: Sequence[Tensor]) -> Symmetries:
    """The groups that some tensor writes and another reads, that nothing looks up, and that are neither
    inputs nor outputs.
    """
    space = watch.space
    bound = _bound_by_groups(watch)
    shown = set().union(*(space.leaves(dim) for tensor in ends for dim in watch.of(tensor)), set())
    roles: dict[int, set[str]] = {}
    for name, dims in watch.parameters.items():
        for dim, votes in zip(dims, watch.votes[name], strict=True):
            bound |= space.inside_products(dim)
            for atom in space.leaves(dim):
                roles.setdefault(space.find(atom), set()).update(votes)
    free = {
        atom
        for atom, seen in roles.items()
        if {"read", "write"} <= seen and "fixed" not in seen and atom not in {space.find(a) for a in shown | bound}
    }
    pieces = [piece for name, dims in watch.parameters.items() for piece in _pieces(watch, name, dims, free)]
    used = {group for piece in pieces for group in piece.groups if group is not None}
    return Symmetries(tuple(pieces), {group: space.size((group,)) for group in used})


def _bound_by_groups(watch: Watch) -> set[int]:
    """Units that norms measure in groups count as groups of units from here on. Those for which that is not
    possible are not permuted.
    """
    bound: set[int] = set()
    for dim, groups in watch.grouped:
        before = watch.space.leaves(dim)
        split = watch.space.reshape([dim], [groups, watch.space.size(dim) // groups])
        after = watch.space.leaves(dim)
        bound |= before | after if {a for d in split for a in watch.space.leaves(d)} - after else set()
    return bound


def _pieces(watch: Watch, name: str, dims: Sequence[Dim], free: set[int]) -> Iterator[Piece]:
    choices: list[list[tuple[int, int, Dim]]] = [list(watch.space.products(dim)) for dim in dims]
    combined: list[list[tuple[int, int, Dim]]] = [[]]
    for options in choices:
        combined = [[*chosen, option] for chosen in combined for option in options]
    for chosen in combined:
        atoms = [atom for _, _, product in chosen for atom in product]
        yield Piece(
            name,
            tuple((start, length) for start, length, _ in chosen),
            tuple(watch.space.size((atom,)) for atom in atoms),
            tuple(atom if atom in free else None for atom in atoms),
        )
