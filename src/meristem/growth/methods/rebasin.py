"""Re-basin: permute the units of several networks into one order, then average their weights. The result has
the size of the first.

Ainsworth, Hayase, Srinivasa: "Git Re-Basin: Merging Models modulo Permutation Symmetries", ICLR 2023,
arXiv:2209.04836 (weight matching, algorithm 1; activation matching, section 3.1). Singh and Jaggi: "Model
Fusion via Optimal Transport", NeurIPS 2020, arXiv:1910.05653 (unequal widths). Jordan, Sedghi, Saukh,
Entezari, Neyshabur: "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", ICLR 2023,
arXiv:2211.08403 (new statistics of batch norms).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from meristem.anatomy.tracing.watch import Watch
from meristem.certificates import verify
from meristem.errors import MeristemError, PreservationError
from meristem.growth.methods.values import check_values, convex
from meristem.growth.pruning.batch_statistics import new_statistics
from meristem.growth.structure.symmetries import Permutations, Symmetries, watched_symmetries
from meristem.growth.structure.transport import Counterparts, Pair, carried, transport_plan, transported

SWEEPS_OF_TRANSPORT = 3  # each after the first with the plans of all other groups
NONLINEAR = ("relu", "gelu", "silu", "tanh", "sigmoid", "elu", "leaky_relu", "hardswish", "native_layer_norm")


@dataclass(frozen=True)
class Rebasin:
    """The options of re-basin: permute the units of networks of one architecture into one order, and average
    the weights (arXiv:2209.04836).

    Networks of another width than the first are brought to its size by optimal transport (arXiv:1910.05653).

    Args:
        weights: the weights of the networks in the mean. They are positive and sum to 1. Equal by default.
        by: what is matched: "weights" (algorithm 1), or "activations" on the inputs of the fusion (section
            3.1).
        sweeps: the largest number of rounds over all groups of units, for "weights".
        seed: the seed of the order in a round.
        batches: batches of keyword arguments of forward, on which the statistics of batch norms are estimated
            again (arXiv:2211.08403). They may be read several times. By default the inputs of the fusion,
            which should then be some hundred examples.

    Raises:
        MeristemError: when networks are fused, if `weights` are not one positive number for each network with
            a sum of 1.
    """

    name: ClassVar[str] = "rebasin"
    weights: Sequence[float] | None = None
    by: Literal["weights", "activations"] = "weights"
    sweeps: int = 50
    seed: int = 0
    batches: Iterable[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        check_values(self)

    def convex(self, networks: int) -> tuple[float, ...]:
        """The weights of that many networks. Raises MeristemError unless they are positive and sum to 1."""
        return convex(self.weights, networks)


def rebasin(models: Sequence[nn.Module], method: Rebasin, inputs: Mapping[str, Any]) -> nn.Module:
    """The mean of networks, of the size of the first, after their units are permuted into its order.

    Args:
        models: the networks.
        method: the options.
        inputs: keyword arguments of forward. A pass on them shows which units can be permuted.

    Raises:
        MeristemError: if the networks do not have the same tensors, or if their widths differ where units
            cannot be permuted.
        PreservationError: if the permutation changes the function of a network.
    """
    weights, first = method.convex(len(models)), models[0]
    for number, other in enumerate(models[1:], start=2):
        _check_alike(first, other, number)
    aligned = [first, *(align(first, other, method, inputs) for other in models[1:])]
    states = [model.state_dict() for model in aligned]
    fused = copy.deepcopy(first)
    for name, tensor in fused.state_dict().items():
        parts = [state[name] for state in states]
        mean = (
            sum(w * p.float() for w, p in zip(weights, parts, strict=True)) if tensor.is_floating_point() else parts[0]
        )
        tensor.copy_(mean)  # pyright: ignore[reportArgumentType]
    new_statistics(fused, method.batches if method.batches is not None else [inputs])
    return fused


def align(first: nn.Module, other: nn.Module, method: Rebasin, inputs: Mapping[str, Any]) -> nn.Module:
    """A network of the size of `first` with the units of `other`, each in the place of the unit of `first`
    that is most like it.

    If the sizes are equal, the result is a copy of `other` with the same function. If the widths differ,
    units are distributed by optimal transport.

    Raises:
        MeristemError: if the widths differ where units cannot be permuted.
        PreservationError: if the permutation changes the function of `other`.
    """
    ours, theirs = first.state_dict(), other.state_dict()
    if any(theirs[name].shape != tensor.shape for name, tensor in ours.items()):
        return _brought_to_size(first, other, method, inputs)
    symmetries, _ = watched_symmetries(first, inputs)
    if method.by == "weights":
        found = _by_weights(symmetries, dict(first.named_parameters()), dict(other.named_parameters()), method)
    else:
        found = {pair[0]: assigned(likeness) for pair, likeness in _correlations(first, other, inputs).likeness.items()}
    moved = copy.deepcopy(other)
    state = symmetries.apply(other.state_dict(), found)
    for name, tensor in moved.state_dict().items():
        tensor.copy_(state[name])
    certificate = verify(other, moved, inputs)
    if not certificate.holds:
        raise PreservationError(
            f"the network computes another function when its units are permuted: {certificate.summary()}"
        )
    return moved


def _brought_to_size(first: nn.Module, other: nn.Module, method: Rebasin, inputs: Mapping[str, Any]) -> nn.Module:
    """`other` with as many units as `first` (Singh and Jaggi 2020)."""
    found = _correlations(first, other, inputs)
    if method.by == "activations":
        plans = {pair: transport_plan(likeness) for pair, likeness in found.likeness.items()}
    else:
        plans = {}
    plans = _by_weights_of_other_sizes(first, other, found, plans, method)
    return transported(first, other, found.counterparts, plans, found.watch)


def _by_weights_of_other_sizes(
    first: nn.Module, other: nn.Module, found: Correlations, known: dict[Pair, Tensor], method: Rebasin
) -> dict[Pair, Tensor]:
    """Transport plans for all groups that are not known, by their weights. The first plans use the weights
    between known groups, in the order of the tensors.
    """
    ours, theirs = dict(first.named_parameters()), dict(other.named_parameters())
    pieces = [(a, b) for a, b in found.counterparts.pieces if a.name in ours]
    open_pairs = [pair for pair in found.counterparts.sizes if pair not in known]
    plans = dict(known)
    for _ in range(min(method.sweeps, SWEEPS_OF_TRANSPORT)):
        for pair in open_pairs:
            likeness = torch.zeros(found.counterparts.sizes[pair], dtype=torch.float64)
            for a, b in pieces:
                pairs = found.counterparts.pairs(a, b)
                others = [p for p in pairs if p is not None and p != pair]
                if pair not in pairs or any(p not in plans for p in others):
                    continue
                for axis in (i for i, own in enumerate(pairs) if own == pair):
                    one = a.of(ours[a.name].detach())
                    two = carried(a, b, found.counterparts, plans, b.of(theirs[b.name].detach()), found.watch, axis)
                    if one.dim() > 1 and pairs.count(pair) > 1:
                        continue  # both sides of one matrix: neither is known
                    rows = [t.movedim(axis, 0).reshape(t.shape[axis], -1).double().cpu() for t in (one, two)]
                    likeness += rows[0] @ rows[1].T
            plans[pair] = transport_plan(likeness)
    return plans


def _check_alike(first: nn.Module, other: nn.Module, number: int) -> None:
    ours, theirs = first.state_dict(), other.state_dict()
    differ = [n for n in {**ours, **theirs} if n not in ours or n not in theirs or ours[n].dim() != theirs[n].dim()]
    if differ:
        raise MeristemError(
            f"networks 1 and {number} are not of one architecture: {differ[0]} differs; rebasin averages weights, tensor by tensor, "
            "of networks that differ in their widths at most"
        )


def _by_weights(
    symmetries: Symmetries, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], method: Rebasin
) -> Permutations:
    """Coordinate descent: each group of units is matched while all others are fixed, until nothing
    changes.
    """
    found = {group: torch.arange(size) for group, size in symmetries.sizes.items()}
    pieces = [piece for piece in symmetries.pieces if piece.name in ours and any(g is not None for g in piece.groups)]
    parts = {piece: (piece.of(ours[piece.name].detach()), piece.of(theirs[piece.name].detach())) for piece in pieces}
    generator = torch.Generator().manual_seed(method.seed)
    groups = sorted(found)
    for _ in range(method.sweeps):
        moved = False
        for place in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[place]
            likeness = torch.zeros(symmetries.sizes[group], symmetries.sizes[group], dtype=torch.float64)
            for piece in pieces:
                for axis in (i for i, own in enumerate(piece.groups) if own == group):
                    a, b = parts[piece]
                    b = piece.permuted(b, found, besides=axis)
                    rows = [
                        t.movedim(axis, 0).flatten(1).double().cpu() if t.dim() > 1 else t[:, None].double().cpu()
                        for t in (a, b)
                    ]
                    likeness += rows[0] @ rows[1].T
            best = assigned(likeness)
            moved |= not torch.equal(best, found[group])
            found[group] = best
        if not moved:
            break
    return found


def assigned(likeness: Tensor) -> Tensor:
    """For each unit of the first network, the unit of the other that it is matched with. The assignment has
    the largest sum of `likeness`.
    """
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(likeness.numpy(), maximize=True)
    return torch.as_tensor(columns)


@dataclass(frozen=True)
class Correlations:
    """The pairs of groups of units of two networks, their correlations on the inputs, and the watch of the
    second network.
    """

    counterparts: Counterparts
    likeness: Mapping[Pair, Tensor]
    watch: Watch


def _correlations(first: nn.Module, other: nn.Module, inputs: Mapping[str, Any]) -> Correlations:
    """{pair of groups: (n, m) correlations of the outputs of their units on the inputs}, for groups that are
    the output of a nonlinearity.
    """
    records = []
    for model in (first, other):
        with _Record() as record:
            symmetries, watch = watched_symmetries(model, inputs)
        records.append((symmetries, watch, [(watch.of(t), t) for t in record.seen]))
    (symmetries, watch, ours), (others, its_watch, theirs) = records
    counterparts = Counterparts.of(symmetries, others)
    likeness = {pair: torch.zeros(size, dtype=torch.float64) for pair, size in counterparts.sizes.items()}
    for (dims, a), (its_dims, b) in zip(ours, theirs, strict=True):
        for dimension, (dim, its_dim) in enumerate(zip(dims, its_dims, strict=True)):
            atoms, its_atoms = (
                [w.space.find(x) for x in w.space.flat(d)] for w, d in ((watch, dim), (its_watch, its_dim))
            )
            pair = (atoms[0], its_atoms[0]) if len(atoms) == len(its_atoms) == 1 else None
            if pair in likeness:
                rows = [t.movedim(dimension, 0).flatten(1).double() for t in (a, b)]
                rows = [r - r.mean(1, keepdim=True) for r in rows]
                rows = [r / r.norm(dim=1, keepdim=True).clamp(min=1e-12) for r in rows]
                likeness[pair] += (rows[0] @ rows[1].T).cpu()
    seen = {pair: matrix for pair, matrix in likeness.items() if bool(matrix.any())}
    return Correlations(counterparts, seen, its_watch)


class _Record(TorchDispatchMode):
    """Keeps the outputs of nonlinearities, in the order of computation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func._schema.name.partition("::")[2].removesuffix("_") in NONLINEAR:
            self.seen += [next(value for value in tree_iter(output) if isinstance(value, Tensor))]
        return output
