"""Optimizer state follows the dual maps, tensor by tensor and by parameter name.

Adam's first moment is an average of gradients and rides like one; the second moment rides the squared entries, which is
exact when each new unit has a single source (design, section 1; published code copies the moments unscaled or fills
blocks with zeros, and both kick the trajectory).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meristem.anatomy import Anatomy
from meristem.anatomy.streamed import Weights
from meristem.errors import MeristemError
from meristem.growth.apply import Moment, grow_tensor
from meristem.growth.block_steps import MISSED, count_blocks_apart
from meristem.growth.build import build
from meristem.growth.dtensors import as_part
from meristem.growth.method import Methods, as_list
from meristem.growth.plan import GrowthPlan, TensorPlan

MOMENTS: dict[str, Moment] = {
    "exp_avg": "gradient",
    "momentum_buffer": "gradient",
    "exp_avg_sq": "second_moment",
    "max_exp_avg_sq": "second_moment",
}

State = Mapping[str, Mapping[str, Tensor]]  # parameter name -> key ("exp_avg", "step", ...) -> tensor


def named_state(optimizer: Optimizer, model: nn.Module) -> State:
    """The optimizer's state by parameter name, which no reordering of parameter groups can confuse.

    Raises:
        MeristemError: for state that is no tensor (such as L-BFGS history).
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state: dict[str, dict[str, Tensor]] = {}
    for parameter, entries in optimizer.state.items():
        name = names.get(id(parameter))
        if name is None:
            raise MeristemError("the optimizer holds parameters that are not the model's; pass the model it trains")
        for key, value in entries.items():
            if not isinstance(value, Tensor | int | float):
                raise MeristemError(f"optimizer state {key!r} of {name} is a {type(value).__name__}, which cannot grow")
        state[name] = {key: torch.as_tensor(value) for key, value in entries.items()}
    return state


def load_named_state(optimizer: Optimizer, model: nn.Module, state: State) -> None:
    """Put a state by names into an optimizer of `model`; of a sharded network, every process keeps its part."""
    parameters = dict(model.named_parameters())
    for name, entries in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {key: as_part(value, parameter) for key, value in entries.items()}
    if any(MISSED in entries for entries in state.values()):
        count_blocks_apart(optimizer)


def grow_state(plan: GrowthPlan, state: State) -> dict[str, Weights]:
    """The optimizer state of the large network, every entry made when it is asked for. Parameters without state (frozen
    ones) stay without.

    Raises:
        MeristemError: for a state entry whose growth is not known, naming it and the known ones.
    """
    unknown = sorted({key for entries in state.values() for key in entries} - {"step", MISSED, *MOMENTS})
    if unknown:
        raise MeristemError(f"optimizer state {unknown[0]!r} cannot be grown; known: step, {', '.join(MOMENTS)}")
    grown = {}
    for name, tensor_plan in plan.tensors.items():
        sources = [_source_name(plan, term.source) for term in tensor_plan.terms]
        own = next((source for source in sources if source in state), None)
        if own is not None:
            grown[name] = Weights(dtypes_of(state[own]), functools.partial(_grown_entry, plan, tensor_plan, state, own))
    return grown


def dtypes_of(entries: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The dtype of each entry; those of entries yet to be made are known without making them."""
    return entries.dtypes if isinstance(entries, Weights) else {key: value.dtype for key, value in entries.items()}


def _grown_entry(plan: GrowthPlan, tensor_plan: TensorPlan, state: State, own: str, key: str) -> Tensor:
    if key == "step":
        return state[own][key].clone()
    if key == MISSED:
        return state[own]["step"] - own_steps(plan, tensor_plan.name, state)

    def fetch(name: str) -> Tensor:
        entries = state.get(_source_name(plan, name))
        return entries[key] if entries else torch.zeros(plan.source.tensors[name].shape)

    return grow_tensor(tensor_plan, fetch, MOMENTS[key])


def own_steps(plan: GrowthPlan, name: str, state: State) -> Tensor:
    """How many steps each entry of a grown tensor has been trained: as many as its source (the mean of several); 0 without one."""
    tensor_plan = plan.tensors[name]

    def summed(of: Callable[[Mapping[str, Tensor], torch.Size], Tensor]) -> Tensor:
        def fetch(source: str) -> Tensor:
            shape = plan.source.tensors[source].shape
            entries = state.get(_source_name(plan, source))
            return of(entries, torch.Size(shape)) if entries else torch.zeros(shape)

        return grow_tensor(tensor_plan, fetch, "second_moment")

    steps = summed(lambda entries, shape: (entries["step"] - entries.get(MISSED, 0)).expand(shape))
    sources = summed(lambda _, shape: torch.ones(shape))
    return torch.where(sources > 0, steps / sources.clamp(min=1e-30), 0).round()


def _source_name(plan: GrowthPlan, name: str) -> str:
    """State belongs to parameters, and tied tensors are one parameter."""
    return plan.source.tensors[name].tied_to or name


def amplitudes(plans: Sequence[GrowthPlan]) -> dict[str, tuple[float, float]]:
    """{parameter: (a, b)}: its weights were scaled by a and its gradients by b.

    With the learning rate times a and eps times b the large network follows the small one's trajectory (the muP rule of
    hidden matrices appears as a = 1/n).
    """
    factors = dict.fromkeys(plans[0].source.tensors, (1.0, 1.0))
    for plan in plans:
        before = factors
        factors = {}
        for name, tensor_plan in plan.tensors.items():
            a, b = before[tensor_plan.terms[0].source]
            factors[name] = (a * tensor_plan.amplitude(), b * tensor_plan.amplitude(dual=True))
    return factors


def grow_optimizer(
    optimizer: Optimizer,
    small: nn.Module,
    big: nn.Module,
    method: Methods,
    *,
    anatomy: Anatomy | None = None,
    scale_learning_rate: bool = False,
) -> Optimizer:
    """An optimizer for `big`, with the state and the hyperparameters of the one that trained `small`.

    Args:
        optimizer: a torch optimizer whose state is made of moments (Adam, AdamW, SGD with momentum).
        small, big: the network before and after `method`.
        method: exactly what was given to `grow`.
        scale_learning_rate: split the parameter groups so that each weight steps in proportion to its new scale
            (learning rate x a, eps x b, weight decay / a, see `amplitudes`): the large network then follows the small
            one's trajectory until its symmetry is broken. Without it all weights keep their learning rate.

    Raises:
        MeristemError: if the optimizer is not the model's, or holds state that cannot be grown.
    """
    state, plans, current = named_state(optimizer, small), [], small
    for m in as_list(method):
        if plans:  # an intermediate network is needed only where another method follows
            current, anatomy = build(plans[-1], current), None
        plans.append(m.plan(anatomy or Anatomy.of(current), current))
        state = grow_state(plans[-1], state)
    grown = without_state(optimizer, small, big, plans, scale_learning_rate)
    load_named_state(grown, big, state)
    return grown


def without_state(
    optimizer: Optimizer, small: nn.Module, big: nn.Module, plans: Sequence[GrowthPlan], scale_learning_rate: bool
) -> Optimizer:
    """The large network's optimizer with the hyperparameters of the small one's, see `grow_optimizer`; its state comes after."""
    groups = _grown_groups(optimizer, small, big, plans, amplitudes(plans) if scale_learning_rate else {})
    return type(optimizer)(groups)  # pyright: ignore[reportCallIssue]: each torch optimizer has its own defaults


def _grown_groups(
    optimizer: Optimizer,
    small: nn.Module,
    big: nn.Module,
    plans: Sequence[GrowthPlan],
    factors: Mapping[str, tuple[float, float]],
) -> list[dict]:
    """The parameter groups of the small network's optimizer, with the large network's parameters in them."""
    names = {id(parameter): name for name, parameter in small.named_parameters()}
    group_of = {names[id(p)]: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for plan in plans:
        group_of = {
            name: group_of[source]
            for name, tensor_plan in plan.tensors.items()
            if (source := _source_name(plan, tensor_plan.terms[0].source)) in group_of
        }
    groups = [{**group, "params": []} for group in optimizer.param_groups]
    for name, parameter in big.named_parameters():
        if name in group_of:
            groups[group_of[name]]["params"].append(parameter)
    return scaled_groups(groups, big, factors) if factors else groups


def scaled_groups(
    groups: Sequence[Mapping[str, Any]], model: nn.Module, factors: Mapping[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    """Parameter groups split so that each parameter steps in proportion to its amplitudes (see `amplitudes`)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    split: dict[tuple[int, float, float], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            a, b = factors.get(names[id(parameter)], (1.0, 1.0))
            split.setdefault((number, a, b), _scaled_group(group, a, b))["params"].append(parameter)
    return list(split.values())


def _scaled_group(group: Mapping[str, Any], a: float, b: float) -> dict[str, Any]:
    """The same hyperparameters for weights that were scaled by a, with gradients scaled by b."""
    scaled = {key: value for key, value in group.items() if key != "params"}
    for key, factor in (("lr", a), ("initial_lr", a), ("eps", b), ("weight_decay", 1 / a)):
        if key in scaled:
            scaled[key] = scaled[key] * factor
    return {**scaled, "params": []}
