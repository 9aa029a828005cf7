"""Networks of unequal widths brought to one width: each unit of the result is a mean of units of the other
network, by optimal transport.

Singh and Jaggi: "Model Fusion via Optimal Transport", NeurIPS 2020, arXiv:1910.05653 (algorithm 1). All units
of a layer have the same weight. The plan T states which share of each unit of the other network goes to each
place in the first. A place carries the mean of what goes to it, and what reads a unit reads its places by
their shares. If one width divides the other, units are copied whole, and the function is kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meristem.anatomy.tracing.watch import Watch
from meristem.errors import MeristemError
from meristem.growth.structure.symmetries import Piece, Symmetries

MOST_SHARES = 4096  # units after each is divided so that both sides have as many; beyond, a linear program
Pair = tuple[int, int]  # a group of units of the first network, and its counterpart in the other
Plans = Mapping[Pair, Tensor]


def transport_plan(likeness: Tensor) -> Tensor:
    """(n, m) float64: the shares for which the sum of share times likeness is largest. Rows sum to 1 / n, and
    columns to 1 / m.

    Args:
        likeness: (n, m).
    """
    from scipy.optimize import linear_sum_assignment, linprog
    from scipy.sparse import eye, kron, vstack

    rows, columns = likeness.shape
    shares = math.lcm(rows, columns)
    if shares <= MOST_SHARES:  # one assignment of equal shares
        divided = likeness.repeat_interleave(shares // rows, 0).repeat_interleave(shares // columns, 1)
        _, to = linear_sum_assignment(divided.numpy(), maximize=True)
        plan = torch.zeros(rows, columns, dtype=torch.float64)
        own = torch.arange(shares) // (shares // rows)
        theirs = torch.as_tensor(to) // (shares // columns)
        return plan.index_put_((own, theirs), torch.tensor(1 / shares, dtype=torch.float64), accumulate=True)
    sums = vstack([kron(eye(rows), [[1.0] * columns]), kron([[1.0] * rows], eye(columns))])
    wanted = [1 / rows] * rows + [1 / columns] * columns
    found = linprog(-likeness.flatten().numpy(), A_eq=sums.tocsr(), b_eq=wanted, method="highs")
    return torch.as_tensor(found.x, dtype=torch.float64).reshape(rows, columns)


@dataclass(frozen=True)
class Counterparts:
    """The pieces of two networks of one architecture and different widths, side by side."""

    pieces: Sequence[tuple[Piece, Piece]]
    sizes: Mapping[Pair, tuple[int, int]]

    @staticmethod
    def of(first: Symmetries, other: Symmetries) -> Counterparts:
        """Raises MeristemError if the architectures differ, or if widths differ where units cannot be
        permuted.
        """
        ours, theirs = _by_name(first), _by_name(other)
        found: list[tuple[Piece, Piece]] = []
        sizes: dict[Pair, tuple[int, int]] = {}
        for name in {**ours, **theirs}:
            pairs = list(zip(ours.get(name, []), theirs.get(name, []), strict=False))
            alike = len(ours.get(name, [])) == len(theirs.get(name, [])) and all(
                len(a.shape) == len(b.shape) for a, b in pairs
            )
            if not alike:
                raise MeristemError(f"the networks are not built alike: {name} is composed differently in each")
            for a, b in pairs:
                for n, m, group, counterpart in zip(a.shape, b.shape, a.groups, b.groups, strict=True):
                    if group is not None and counterpart is not None:
                        sizes[group, counterpart] = (n, m)
                    elif n != m:
                        raise MeristemError(
                            f"{name} has {n} units in the one network and {m} in the other that cannot be permuted, so they "
                            "cannot be brought to one width"
                        )
            found += pairs
        if len({a for a, _ in sizes}) < len(sizes) or len({b for _, b in sizes}) < len(sizes):
            raise MeristemError(
                "the networks are not built alike: units that belong together in one do not in the other"
            )
        return Counterparts(tuple(found), sizes)

    def pairs(self, ours: Piece, theirs: Piece) -> list[Pair | None]:
        """For each kind of unit of a piece, the pair of groups that it belongs to."""
        both = zip(ours.groups, theirs.groups, strict=True)
        return [(a, b) if a is not None and b is not None else None for a, b in both]


def transported(
    first: nn.Module, other: nn.Module, counterparts: Counterparts, plans: Plans, watch: Watch
) -> nn.Module:
    """A network of the size of `first`, whose units are those of `other` as the plans transport them.

    Args:
        first: the network whose size the result has.
        other: the network whose units it has.
        counterparts: the pieces of both.
        plans: the transport plan of each pair of groups.
        watch: the watch of a pass of `other`, which says what is read and what is written.
    """
    moved, state = copy.deepcopy(first), other.state_dict()
    targets = moved.state_dict()
    for name, target in targets.items():
        if target.shape == state[name].shape:
            target.copy_(state[name])
    for ours, theirs in counterparts.pieces:
        part = carried(ours, theirs, counterparts, plans, theirs.of(state[theirs.name]), watch)
        target = targets[ours.name]
        for dimension, (start, length) in enumerate(ours.place):
            target = target.narrow(dimension, start, length)
        target.copy_(part.reshape(target.shape))
    return moved


def carried(
    ours: Piece,
    theirs: Piece,
    counterparts: Counterparts,
    plans: Plans,
    part: Tensor,
    watch: Watch,
    besides: int | None = None,
) -> Tensor:
    """A piece of the other network with its units where the plans transport them, except along the axis
    `besides`.
    """
    dtype = part.dtype
    for axis, pair in enumerate(counterparts.pairs(ours, theirs)):
        if pair is not None and pair in plans and axis != besides:
            plan = plans[pair]
            roles = watch.votes[theirs.name][theirs.dimension(axis)]
            reads = "read" in roles and "write" not in roles
            shares = plan / plan.sum(0, keepdim=True) if reads else plan / plan.sum(1, keepdim=True)
            part = (part.double().movedim(axis, -1) @ shares.T.to(part.device)).movedim(-1, axis)
    return part.to(dtype)


def _by_name(symmetries: Symmetries) -> dict[str, list[Piece]]:
    found: dict[str, list[Piece]] = {}
    for piece in symmetries.pieces:
        found.setdefault(piece.name, []).append(piece)
    return found
