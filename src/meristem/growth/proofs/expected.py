"""What the outputs of a grown network should be: those of the small network, with features mapped as their
axis was.

Logits, boxes and masks keep their shape and are compared as they are. Hidden states, the outputs of networks
without a head, have grown along an axis. Those of the small network are mapped by the write map of that axis.
Under a padding that norms divide out, they are mapped by what readers receive. If the stream itself is an
output, without a norm after it, its scale is included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy.axis_ref import are_pairs, is_frequencies
from meristem.certificates import relative_error
from meristem.growth.plans.plan import GrowthPlan


def expected_outputs(
    plans: Sequence[GrowthPlan], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The outputs of the small network as the grown one should compute them. An output that did not grow does
    not change.

    Args:
        plans: the plans of the growth, in their order.
        ours: {name: output of the small network} (`anatomy.inputs.outputs_of`).
        theirs: {name: output of the grown network}. If several axes have the sizes of an output, the map that
            explains it best is used.
    """
    return {name: _expected(plans, output, theirs[name]) for name, output in ours.items()}


def _expected(plans: Sequence[GrowthPlan], a: Tensor, b: Tensor) -> Tensor:
    return min(_mapped(a, b, plans), key=lambda mapped: relative_error(mapped, b), default=a)


def _mapped(a: Tensor, b: Tensor, plans: Sequence[GrowthPlan]) -> Iterator[Tensor]:
    """Candidates for the output of the small network in the shape of the large one."""
    if a.shape == b.shape:
        yield a
        return
    moved = [d for d in range(a.dim()) if a.dim() == b.dim() and a.shape[d] != b.shape[d]]
    if len(moved) != 1:
        return
    (dimension,) = moved
    for axis_map in _through(plans, a.shape[dimension], b.shape[dimension]):
        if _of_unit_norm(a, dimension):  # as embeddings that a cosine compares are; copies would make it larger
            yield torch.nn.functional.normalize(_apply(axis_map.write, a, dimension), dim=dimension)
        if (
            axis_map.filled or axis_map.fresh is not None
        ):  # the entries of new tokens, or of units that no weight reads, are not compared
            given = axis_map.write.sourceless() if axis_map.fresh is None else axis_map.fresh
            new = given.view([-1 if d == dimension else 1 for d in range(b.dim())]).to(b.device)
            yield torch.where(new, b.double(), _apply(axis_map.write, a, dimension))
            if axis_map.filled:
                continue
        yield _apply(axis_map.write, a, dimension)
        if axis_map.heard is not axis_map.write:
            yield _apply(axis_map.heard, a, dimension)
        if axis_map.norm_factor != 1:
            yield _apply(axis_map.write, a / axis_map.norm_factor, dimension)


def _of_unit_norm(tensor: Tensor, dimension: int) -> bool:
    norms = tensor.double().norm(dim=dimension)
    return torch.allclose(norms, torch.ones_like(norms), rtol=0, atol=1e-4)


def _through(plans: Sequence[GrowthPlan], old: int, new: int) -> Iterator[AxisMap]:
    """The maps, through all plans, of the axes (or of several copies of one) that grew from `old` to
    `new`.
    """
    for axis in plans[0].source.axes if plans else ():
        total = plans[0].axis_map(axis)
        for plan in plans[1:]:
            if axis in plan.source.axes:
                total = plan.axis_map(axis).after(total)
        times = old // total.old_size
        if old == times * total.old_size and new == times * total.new_size:
            if are_pairs(axis) or is_frequencies(
                axis
            ):  # the two units of a pair, or a sine and its cosine, side by side
                if times == 2:
                    yield total.kron(AxisMap.identity(2))
            else:
                yield AxisMap.identity(times).kron(total) if times > 1 else total


def _apply(unit_map: UnitMap, tensor: Tensor, dimension: int) -> Tensor:
    return unit_map.apply(tensor.double(), dimension)
