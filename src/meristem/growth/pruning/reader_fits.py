"""The readers of a pruned network, fitted by least squares to what they compute in the whole network: in
turn, in the order of the run.

The input of a reader W is x, and in the pruned network x'. x' has fewer units, and their values differ too,
because earlier layers were cut. W M with M = E[x x'^T] E[x' x'^T]^-1 is nearest to W x. He, Zhang, Sun:
"Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, arXiv:1707.06168 (section 3.2, whole
model).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from meristem.growth.plans.prune_plan import PrunePlan
from meristem.growth.pruning.batch_statistics import batch_norms, new_statistics
from meristem.growth.pruning.readings import Readings, TakesWatch, nearest_mixture
from meristem.growth.structure.symmetries import watched
from meristem.growth.tensors.apply import grow_tensor
from meristem.growth.tensors.build import build

Batches = Sequence[Mapping[str, Any]]


def at_once(plan: PrunePlan, readings: Readings, ridge: float) -> PrunePlan:
    """The plan with each reader fitted to the units that stay, with their values in the whole network."""
    mixtures = {
        (reading.weight, reading.place): nearest_mixture(reading.moment[:, kept], reading.moment[kept][:, kept], ridge)
        for reading, _, kept in _cut(plan, readings)
    }
    return replace(plan, mixtures=mixtures)


def in_turn(plan: PrunePlan, readings: Readings, model: nn.Module, batches: Batches, ridge: float) -> PrunePlan:
    """The plan with each reader fitted to its input after all readers before it are fitted. This takes two
    passes for each set of readers of one input.
    """
    fitted = at_once(plan, readings, ridge).mixtures  # where passes cannot be compared, as after a router
    turns: dict[int, list[tuple[str, str, int]]] = {}
    for reading, name, _ in _cut(plan, readings):
        turns.setdefault(reading.turn, []).append((reading.weight, name, reading.place))
    small, weights, normed = build(plan, model).eval(), model.state_dict(), bool(batch_norms(model))
    for turn in sorted(turns):
        if normed:
            new_statistics(small, batches)
        whole = [_taken(model, {source for source, _, _ in turns[turn]}, batch) for batch in batches]
        cut = [_taken(small, {name for _, name, _ in turns[turn]}, batch) for batch in batches]
        for source, name, place in turns[turn]:
            pairs = [(x[source], y[name]) for x, y in zip(whole, cut, strict=True) if source in x and name in y]
            alike = len(pairs) == len(batches) and all(x.shape[1] == y.shape[1] for x, y in pairs)
            mixture = fitted[source, place]
            if alike:
                cross, own = sum(x @ y.T for x, y in pairs), sum(y @ y.T for _, y in pairs)
                mixture = nearest_mixture(cross, own, ridge)  # pyright: ignore[reportArgumentType]
            plan = replace(plan, mixtures={**plan.mixtures, (source, place): mixture})
            with torch.no_grad():
                small.state_dict()[name].copy_(grow_tensor(plan.tensors[name], weights.__getitem__))
    return plan


def _cut(plan: PrunePlan, readings: Readings) -> list[tuple[Any, str, Tensor]]:
    """(reading, name in the small network, the units that stay) of all readers that lose some."""
    found = []
    for tensor in plan.tensors.values():
        for place, axis_map in enumerate(tensor.maps):
            reading = readings.get((tensor.terms[0].source, place, 0))
            if axis_map is not None and reading is not None and reading.whole and tensor.roles[place] == "read":
                found.append((reading, tensor.name, axis_map.write.index))
    return found


def _taken(model: nn.Module, names: set[str], batch: Mapping[str, Any]) -> dict[str, Tensor]:
    watch = TakesWatch(model, names)
    watched(model, batch, watch)
    return watch.taken
