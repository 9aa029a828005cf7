"""Optimizer state follows the dual maps, tensor by tensor and by the name of the parameter.

Adam's first moment is an average of gradients, so it transforms like a gradient. The second moment transforms
with squared entries, which is exact if each new unit has one source (design, section 1). Published code
copies the moments unscaled or fills blocks with zeros, and both disturb the trajectory. What other optimizers
keep, and how their steps scale, is the table of `optimizer_families`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy.streamed import Weights
from meristem.errors import MeristemError
from meristem.growth.optimizers.block_steps import MISSED, count_blocks_apart
from meristem.growth.optimizers.optimizer_families import (
    FAMILIES,
    Amplitude,
    Family,
    family_by_entries,
    family_of,
    unknown_entry,
)
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.tensor_plan import TensorPlan
from meristem.growth.tensors.apply import grow_tensor
from meristem.growth.tensors.dtensors import as_part

KEPT_BY_SCHEDULERS = ("initial_lr", "max_lr", "min_lr")  # rates in a parameter group that learning rates are set from
State = Mapping[str, Mapping[str, Tensor]]  # parameter name -> key ("exp_avg", "step", ...) -> tensor


def named_state(optimizer: Optimizer, model: nn.Module) -> State:
    """The state of the optimizer by the name of the parameter, which does not depend on the order of
    parameter groups.

    Numbers become tensors of 64 bits without dimensions. A second set of weights in the state (schedule-free
    `z`) becomes its difference from the weights.

    Raises:
        MeristemError: if the state contains anything but tensors and numbers (such as L-BFGS history).
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    family = family_of(optimizer)
    state: dict[str, dict[str, Tensor]] = {}
    for parameter, entries in optimizer.state.items():
        name = names.get(id(parameter))
        if name is None:
            raise _foreign()
        kept = {key: _as_tensor(key, value, name) for key, value in entries.items() if value is not None}
        for key in (key for key in kept if family.entries.get(key) == "weights"):
            kept[key] = kept[key] - parameter.detach()
        state[name] = kept
    return state


def _foreign() -> MeristemError:
    return MeristemError(
        "the optimizer holds parameters that are not the model's; pass the one that trains the source of this growth (after an "
        "earlier growth, what grow_optimizer of that one returned)"
    )


def _as_tensor(key: str, value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, int | float):
        raise MeristemError(f"optimizer state {key!r} of {name} is of type {type(value).__name__}, which cannot grow")
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def load_named_state(optimizer: Optimizer, model: nn.Module, state: State) -> None:
    """Put a state by names into an optimizer of `model`. For a sharded network, every process keeps its part.
    Parameters that the optimizer does not train (frozen ones) get no state.

    Raises:
        MeristemError: if it is the state of another optimizer.
    """
    parameters = dict(model.named_parameters())
    family = family_of(optimizer)
    for name, entries in state.items():
        if not family.takes(entries):
            raise MeristemError(
                f"the optimizer state of {name} has {', '.join(sorted(entries))}, which {family.name} cannot continue from; use the "
                "optimizer that wrote it, or start with a new state"
            )
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for name, entries in state.items():
        parameter = parameters[name]
        if id(parameter) not in group_of:
            continue
        counted_there = any(group_of[id(parameter)].get(key) for key in ("fused", "capturable"))
        loaded: dict[str, Any] = {
            key: as_part(value.to(parameter.device if value.dim() or counted_there else "cpu"), parameter)
            for key, value in entries.items()
        }
        for key, value in loaded.items():
            if family.entries.get(key) == "weights":
                loaded[key] = parameter.detach() + value
            elif value.dim() == 0 and value.dtype in (torch.int64, torch.float64) and key in ("step", "RMS"):
                loaded[key] = value.item() if value.dtype == torch.int64 or key == "RMS" else value
        optimizer.state[parameter] = loaded
    if any(MISSED in entries for entries in state.values()):
        count_blocks_apart(optimizer)


def grow_state(plan: GrowthPlan, state: State, family: Family | None = None) -> dict[str, Weights]:
    """The optimizer state of the large network. Every entry is computed when it is read. Parameters without
    state (frozen ones) get none.

    Args:
        plan: the plan of the growth.
        state: the state by the name of the parameter.
        family: the row of the table of optimizers. By default the first that has all entries of the state.

    Raises:
        MeristemError: if it is not known how an entry of the state grows.
    """
    keys = {key for entries in state.values() for key in entries} - {MISSED}
    family = family or family_by_entries(keys)
    if keys - set(family.entries):
        raise unknown_entry(keys - set(family.entries), family)
    grown = {}
    for name, tensor_plan in plan.tensors.items():
        sources = [_source_name(plan, term.source) for term in tensor_plan.terms]
        own = next((source for source in sources if source in state), None)
        if own is None:
            continue
        dtypes = dtypes_of(state[own])
        if family.counts and "step" in dtypes and not tensor_plan.begins and _has_beginners(tensor_plan):
            dtypes = {**dtypes, MISSED: torch.float32}
        grown[name] = Weights(dtypes, functools.partial(_grown_entry, plan, tensor_plan, state, own, family))
    return grown


def dtypes_of(entries: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The dtype of each entry. Those of entries that are not computed yet are known without computing
    them.
    """
    return (
        dict(entries.dtypes) if isinstance(entries, Weights) else {key: value.dtype for key, value in entries.items()}
    )


def _has_beginners(tensor_plan: TensorPlan) -> bool:
    """Whether some entries of a grown tensor had no gradient before: silent or unread units, silent
    layers.
    """
    duals = (tensor_plan.unit_map(dimension, dual=True) for dimension in range(len(tensor_plan.maps)))
    begins = tensor_plan.begins or tensor_plan.redrawn is not None
    return begins or any(m is not None and bool(m.sourceless().any()) for m in duals)


def partly_new(plans: Sequence[GrowthPlan]) -> bool:
    """Whether some tensor holds both trained and untrained entries, so that one count of steps is not
    enough.
    """
    return any(not t.begins and _has_beginners(t) for plan in plans for t in plan.tensors.values())


def _grown_entry(plan: GrowthPlan, tensor_plan: TensorPlan, state: State, own: str, family: Family, key: str) -> Tensor:
    if key == MISSED:
        steps = own_steps(plan, tensor_plan.name, state)
        return state[own]["step"].to(steps.device) - steps
    kind = family.entries[key]
    if kind == "scalar":
        value = state[own][key]
        return torch.full_like(value, family.initial(key, float(value))) if tensor_plan.begins else value.clone()
    like = state[own][key]

    def fetch(name: str) -> Tensor:
        entries = state.get(_source_name(plan, name))
        return entries[key] if entries else torch.zeros_like(like)

    if kind in ("row", "column"):
        return _averaged_parts(tensor_plan, fetch, reduced=-1 if kind == "row" else -2)
    grown = grow_tensor(tensor_plan, fetch, "displacement" if kind == "weights" else kind)
    counted_anew = tensor_plan.begins and "step" in state[own]
    if kind == "second_moment" and family.fills and not counted_anew and _has_beginners(tensor_plan):
        return _filled(grown, own_steps(plan, tensor_plan.name, state, counted=False) > 0, like)
    return grown


def _filled(moment: Tensor, trained: Tensor, like: Tensor) -> Tensor:
    """Second moments in which those of untrained entries are the mean of the others, or of those of the small
    tensor.
    """
    typical = moment[trained].mean() if bool(trained.any()) else like.mean()
    return torch.where(trained.to(moment.device), moment, typical.to(moment))


def _averaged_parts(tensor_plan: TensorPlan, fetch: Callable[[str], Tensor], reduced: int) -> Tensor:
    """`_averaged` for a tensor that is concatenated from several."""
    parts = [_averaged(part, fetch, reduced) for part in tensor_plan.parts]
    if len(parts) == 1:
        return parts[0]
    if tensor_plan.along == len(tensor_plan.maps) + reduced:  # averaged over all of them, which are alike in size
        return torch.stack(parts).mean(0)
    return torch.cat(parts, tensor_plan.along)


def _averaged(tensor_plan: TensorPlan, fetch: Callable[[str], Tensor], reduced: int) -> Tensor:
    """The mean of second moments over one dimension, which torch keeps with size 1 and transformers leaves
    out.

    The mean over the new units is the old one times the mean of their squared gradient factors. It is exact
    if all old units have equally many copies.
    """
    position = len(tensor_plan.maps) + reduced
    average = tensor_plan.unit_map(position, dual=True)
    factor = float(average.squared().matrix().sum()) / average.new_size if average is not None else 1.0
    one = UnitMap.select(torch.zeros(1, dtype=torch.long), 1, factor**0.5)
    maps = list(tensor_plan.maps)
    maps[position] = AxisMap(one, one)
    sources = len(maps) - (tensor_plan.shards is not None)  # dimensions that they have
    left_out = fetch(tensor_plan.terms[0].source).dim() < sources
    if tensor_plan.drawn is not None:
        shape = list(tensor_plan.drawn.shape)
        shape[reduced] = 1
        like = fetch(tensor_plan.terms[0].source)
        return (
            torch.zeros(shape, dtype=like.dtype).squeeze(reduced) if left_out else torch.zeros(shape, dtype=like.dtype)
        )
    grown = grow_tensor(
        replace(tensor_plan, maps=tuple(maps)),
        lambda name: fetch(name).unsqueeze(reduced) if left_out else fetch(name),
        "second_moment",
    )
    return grown.squeeze(reduced) if left_out else grown


def own_steps(plan: GrowthPlan, name: str, state: State, counted: bool = True) -> Tensor:
    """How many steps each entry of a grown tensor has trained: as many as its source (the mean for several),
    and 0 without a source.

    Args:
        plan: the plan of the growth.
        name: the name of the tensor.
        state: the state by the name of the parameter.
        counted: whether the state counts steps. Otherwise 1 means any number.
    """
    tensor_plan = plan.tensors[name]

    def summed(of: Callable[[Mapping[str, Tensor], torch.Size], Tensor]) -> Tensor:
        def fetch(source: str) -> Tensor:
            shape = plan.source.tensors[source].shape
            entries = state.get(_source_name(plan, source))
            return of(entries, torch.Size(shape)) if entries else torch.zeros(shape)

        return grow_tensor(tensor_plan, fetch, "second_moment")

    steps = summed(lambda entries, shape: _steps(entries).expand(shape) if counted else torch.ones(shape))
    sources = summed(lambda _, shape: torch.ones(shape))
    return torch.where(sources > 0, steps / sources.clamp(min=1e-30), 0).round()


def _steps(entries: Mapping[str, Tensor]) -> Tensor:
    """The steps of the entries of a tensor, counted on the CPU."""
    missed = entries[MISSED].cpu() if MISSED in entries else 0
    return entries["step"].cpu().float() - missed


def _source_name(plan: GrowthPlan, name: str) -> str:
    """The name of the parameter that has the state. Tied tensors are one parameter."""
    return plan.source.tensors[name].tied_to or name


def amplitudes(plans: Sequence[GrowthPlan]) -> dict[str, Amplitude]:
    """{parameter: the factors of its weights and of its gradients} (see `optimizer_families`)."""
    factors = {name: Amplitude(old_shape=tensor.shape) for name, tensor in plans[0].source.tensors.items()}
    for plan in plans:
        before = factors
        factors = {}
        for name, tensor_plan in plan.tensors.items():
            old = before[tensor_plan.terms[0].source]
            factors[name] = Amplitude(
                old.weight * tensor_plan.amplitude(),
                old.gradient * tensor_plan.amplitude(dual=True),
                old.spread * tensor_plan.spread(),
                old.old_shape,
                plan.shapes[name],
            )
    return factors


def grown_optimizer(
    optimizer: Optimizer, small: nn.Module, big: nn.Module, plans: Sequence[GrowthPlan], scale_learning_rate: bool
) -> Optimizer:
    """An optimizer for what `plans` made from `small` (see `ms.grow_optimizer`)."""
    optimizer = unwrapped(optimizer)
    family, state = family_of(optimizer), named_state(optimizer, small)
    for plan in plans:
        state = grow_state(plan, state, family)
    grown = without_state(optimizer, small, big, plans, scale_learning_rate)
    load_named_state(grown, big, state)
    return grown


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, if accelerate has wrapped it."""
    inner = getattr(optimizer, "optimizer", None)
    return unwrapped(inner) if isinstance(inner, Optimizer) else optimizer


def without_state(
    optimizer: Optimizer, small: nn.Module, big: nn.Module, plans: Sequence[GrowthPlan], scale_learning_rate: bool
) -> Optimizer:
    """The optimizer of the large network with the hyperparameters of that of the small one (see
    `ms.grow_optimizer`). Its state is added afterwards.
    """
    groups = _grown_groups(optimizer, small, big, plans)
    if scale_learning_rate:
        groups = scaled_groups(groups, big, amplitudes(plans), family_of(optimizer))
    accepted = inspect.signature(type(optimizer)).parameters
    defaults = {key: value for key, value in optimizer.defaults.items() if key in accepted}
    grown = type(optimizer)(groups, **defaults)
    grown.defaults = dict(optimizer.defaults)
    return grown


def _grown_groups(
    optimizer: Optimizer, small: nn.Module, big: nn.Module, plans: Sequence[GrowthPlan]
) -> list[dict[str, Any]]:
    """The parameter groups of the small network's optimizer, with the parameters of the large network."""
    names = {id(parameter): name for name, parameter in small.named_parameters()}
    if any(id(parameter) not in names for group in optimizer.param_groups for parameter in group["params"]):
        raise _foreign()
    group_of = {names[id(p)]: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for plan in plans:
        group_of = {
            name: group_of[source]
            for name, tensor_plan in plan.tensors.items()
            if (source := _source_name(plan, tensor_plan.terms[0].source)) in group_of
        }
    groups = [_emptied(group) for group in optimizer.param_groups]
    named = ["param_names" in group for group in optimizer.param_groups]
    for name, parameter in big.named_parameters():
        if name in group_of:
            number = group_of[name]
            groups[number]["params"].append((name, parameter) if named[number] else parameter)
    return groups


def _emptied(group: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a group, without its parameters and their names."""
    kept = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    own = {key: value.clone() if isinstance(value, Tensor) else value for key, value in kept.items()}
    return {**own, "params": []}


def scaled_groups(
    groups: Sequence[Mapping[str, Any]],
    model: nn.Module,
    factors: Mapping[str, Sequence[Any]],
    family: Family = FAMILIES["AdamW"],
) -> list[dict[str, Any]]:
    """Parameter groups split so that the step of each parameter is proportional to the scale of its weights.

    Args:
        groups: the groups of an optimizer of `model`. Their parameters may be pairs of name and parameter.
        model: the network.
        factors: {parameter: its `Amplitude`, or the numbers of one}.
        family: the row of the optimizer in the table.

    Raises:
        MeristemError: if it is not known how the steps of the optimizer follow the scale of the weights.
    """
    if family.changes is None:
        raise MeristemError(
            f"Meristem does not know how the steps of {family.name} depend on the scale of weights, only those of "
            f"{', '.join(FAMILIES)}. Carry its state without scale_learning_rate"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    split: dict[tuple[int, tuple[tuple[str, float], ...]], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            held = parameter[1] if isinstance(parameter, tuple) else parameter
            changes = family.changes(group, Amplitude(*factors.get(names[id(held)], ())))
            key = (number, tuple(changes.items()))
            split.setdefault(key, _scaled_group(group, changes))["params"].append(parameter)
    return list(split.values())


def _scaled_group(group: Mapping[str, Any], changes: Mapping[str, float]) -> dict[str, Any]:
    scaled = _emptied(group)
    if "lr" in changes:
        changes = {**changes, **dict.fromkeys(KEPT_BY_SCHEDULERS, changes["lr"])}
    for key, factor in changes.items():
        if scaled.get(key) is not None:
            scaled[key] = scaled[key] * factor
    return scaled
