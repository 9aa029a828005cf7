"""What a grown network should put out, output by output: the small network's, its features mapped as their axis was.

Logits, boxes and masks keep their shape and are compared as they are. Hidden states, as networks without a head put them
out, have grown along some axis: the small network's are taken through the write map of that axis (under a padding that
norms divide out, through what readers hear of it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from meristem.algebra import AxisMap, UnitMap
from meristem.errors import MeristemError
from meristem.growth.plan import GrowthPlan

HUGE = 1e30  # of entries that stand for "never": they have to be the same, and do not set the scale


def output_error(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], plans: Sequence[GrowthPlan] = ()) -> float:
    """The largest relative error over all outputs: max |difference| / max |value| of each.

    Args:
        ours, theirs: outputs by name (`anatomy.inputs.outputs_of`) of the small and of the grown network.
        plans: those that the growth was made by, in their order; without any, all shapes have to be the same.

    Raises:
        MeristemError: if an output is missing, or its shape has changed along no axis that grew.
    """
    missing = [name for name in ours if name not in theirs]
    if missing:
        raise MeristemError(f"the outputs cannot be compared: only one network puts out {', '.join(missing)}")
    return max(_error_of(name, ours[name], theirs[name], plans) for name in ours)


def _error_of(name: str, a: Tensor, b: Tensor, plans: Sequence[GrowthPlan]) -> float:
    errors = [relative_error(expected, b) for expected in _mapped(a, b, plans)]
    if not errors:
        raise MeristemError(f"the outputs cannot be compared: {name} has shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return min(errors)


def relative_error(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |a|, in float64; entries that are infinite in both do not count, in one of them they count as 1."""
    a, b = a.double().cpu(), b.double().cpu()
    ordinary = a.isfinite() & b.isfinite() & (a.abs() < HUGE)
    if bool(((a != b) & ~ordinary & ~(a.isnan() & b.isnan())).any()):
        return 1.0
    if not bool(ordinary.any()):
        return 0.0
    error, scale = float((a - b)[ordinary].abs().max()), float(a[ordinary].abs().max())
    return error / scale if scale else error


def _mapped(a: Tensor, b: Tensor, plans: Sequence[GrowthPlan]) -> Iterator[Tensor]:
    """What the small network's output may look like in the large one's shape."""
    if a.shape == b.shape:
        yield a
        return
    moved = [d for d in range(a.dim()) if a.dim() == b.dim() and a.shape[d] != b.shape[d]]
    if len(moved) != 1:
        return
    (dimension,) = moved
    for axis_map in _through(plans, a.shape[dimension], b.shape[dimension]):
        yield _apply(axis_map.write, a, dimension)
        if axis_map.heard is not axis_map.write:
            yield _apply(axis_map.heard, a, dimension)


def _through(plans: Sequence[GrowthPlan], old: int, new: int) -> Iterator[AxisMap]:
    """The maps through all plans of the axes (or several of one beside each other) that grew from `old` to `new`."""
    for axis in plans[0].source.axes if plans else ():
        total = plans[0].axis_map(axis)
        for plan in plans[1:]:
            if axis in plan.source.axes:
                total = plan.axis_map(axis).after(total)
        times = old // total.old_size
        if old == times * total.old_size and new == times * total.new_size:
            yield AxisMap.identity(times).kron(total) if times > 1 else total


def _apply(unit_map: UnitMap, tensor: Tensor, dimension: int) -> Tensor:
    return unit_map.apply(tensor.double(), dimension)
