"""Measurement of a growth point of a recipe: how much the training after it opposes the training before
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import default_data_collator

from meristem.anatomy import Anatomy
from meristem.checkpoints import open_model
from meristem.dynamics import Junction, junction, junction_learning_rate
from meristem.dynamics.junction import language_loss, restricted, warmup_steps
from meristem.errors import MeristemError
from meristem.growth.fuse import fuse_with_certificate
from meristem.growth.fusion.optimizer import fuse_state
from meristem.growth.optimizers.block_steps import MISSED
from meristem.growth.optimizers.optimizer import State, grow_state
from meristem.growth.plans.plan import GrowthPlan
from meristem.recipes.growth_node import check_grows
from meristem.recipes.node import NodeResult
from meristem.recipes.run import directory_of, run
from meristem.recipes.specs.nodes import FuseSpec, GrowSpec
from meristem.recipes.specs.schema import Recipe
from meristem.recipes.tasks import Task, open_task
from meristem.recipes.training.arguments import ADAM_BETA2
from meristem.recipes.training.left import load_state
from meristem.streams import Streams


@dataclass(frozen=True)
class Diagnosis:
    """The measurement at a node, and the learning rate there that keeps h |[g, f]| / |f| at `bound`.

    `optimizer` is "adam" if the parents have left second moments, otherwise "sgd". `learning_rate` is for
    this optimizer. `warmup` has an entry for every train node that continues from here: the number of warm-up
    steps from this learning rate to the node's own.
    """

    node: str
    seed: int
    junction: Junction
    bound: float
    learning_rate: float
    optimizer: Literal["adam", "sgd"]
    warmup: dict[str, int]


def diagnose(
    recipe: Recipe,
    node: str,
    out: Path,
    bound: float = 0.1,
    sequences: int = 8,
    step: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> list[Diagnosis]:
    """Measure the growth or fusion node `node` of a recipe, for each seed, on a batch of its own training
    text.

    The nodes from which it comes run first, if they have not finished.

    Args:
        recipe: the recipe.
        node: the name of the node.
        out: the directory of the run.
        bound: the limit of the conflict at the junction, per step.
        sequences: the number of sequences in the probe batch.
        step: a context that is entered around the measurement of each seed, with a sentence about it. It can
            show progress.

    Raises:
        MeristemError: if the node does not grow, or if its growth mixes units so that the small network
            cannot be read back.
    """
    check_grows(recipe, node)
    wanted = {name: recipe.nodes[name] for name in recipe.ancestors(node)}
    results = run(recipe.model_copy(update={"nodes": wanted, "race": None}), out)
    task = open_task(recipe.data)
    found = []
    for seed, done in results.items():
        with step(f"measuring the junction at {node}, seed {seed}"):
            found.append(diagnose_seed(recipe, node, seed, done, out, task, bound, sequences))
    return found


def diagnose_seed(
    recipe: Recipe,
    node: str,
    seed: int,
    done: Mapping[str, NodeResult],
    out: Path,
    task: Task,
    bound: float = 0.1,
    sequences: int = 8,
) -> Diagnosis:
    """Measure the growth or fusion node `node` of one seed, whose nodes have run.

    Args:
        done: the results of the node and of its ancestors, by name.
        task: the opened data of the recipe.

    The other arguments and the errors are those of `diagnose`.
    """
    spec = recipe.nodes[node]
    parents = [open_model(str(directory_of(out, done[name]) / "model")).float() for name in spec.parents]
    known = [_state(directory_of(out, done[name])) for name in spec.parents]
    states = [state for state in known if state]
    states = states if len(states) == len(parents) else []
    if spec.fuse:
        point = _fused(spec.fuse, Streams(seed).seed("growth"), parents, states)
    else:
        assert spec.grow is not None
        point = _grown(node, spec.grow, Streams(seed, spec.seed), parents[0], states)
    large = point.large or open_model(str(directory_of(out, done[node]) / "model")).float()
    for plan, parent in zip(point.plans, parents, strict=True):
        _check_way_back(plan, parent, large, fused=len(point.plans) > 1)
    examples = task.training_set(sequences, Streams(seed).seed("order"), 0)
    batch = default_data_collator([examples[i] for i in range(sequences)])
    moments = _second_moments(point.state, _beta2(recipe, spec.parents[0])) if point.state else None
    measured = junction(point.plans, parents, large, language_loss(batch), point.weights, moments)
    rate = junction_learning_rate(measured, bound)
    following = {
        n: s.train for n, s in recipe.nodes.items() if s.train and s.train.from_ == node and s.train.learning_rate
    }
    warmup = {name: warmup_steps(rate, train.rate) for name, train in following.items()}
    return Diagnosis(node, seed, measured, bound, rate, "adam" if moments else "sgd", warmup)


@dataclass(frozen=True)
class _Grown:
    """A growth point: the plan and the weight of each parent, their optimizer states in the shapes of the
    large network, and the large network if it is built again.
    """

    plans: Sequence[GrowthPlan]
    weights: tuple[float, ...]
    state: State | None
    large: nn.Module | None = None


def _fused(spec: FuseSpec, seed: int, parents: list[nn.Module], states: list[State]) -> _Grown:
    """A fusion without the noise of self-fusion. The copies cancel that noise, and one copy with noise is not
    its parent.
    """
    fusion = fuse_with_certificate(parents, replace(spec.method(seed), noise=0.0), verify=False)
    return _Grown(fusion.plans, fusion.weights, fuse_state(fusion, states) if states else None, fusion.model)


def _grown(node: str, spec: GrowSpec, streams: Streams, parent: nn.Module, states: list[State]) -> _Grown:
    methods = spec.seeded_methods(streams)
    if len(methods) > 1:
        raise MeristemError(f"{node!r} grows by {len(methods)} methods in turn; diagnose measures one: split the node")
    plan = methods[0].plan(Anatomy.of(parent), parent)
    return _Grown([plan], (1.0,), grow_state(plan, states[0]) if states else None)


def _state(directory: Path) -> State | None:
    """The state of the node's Adam, or None for another optimizer."""
    file = directory / "optimizer.safetensors"
    state = load_state(file)
    return state if any("exp_avg_sq" in entries for entries in state.values()) else None


def _beta2(recipe: Recipe, parent: str) -> float:
    train = recipe.nodes[parent].train
    return train.trainer.get("adam_beta2", ADAM_BETA2) if train else ADAM_BETA2


def _second_moments(state: State, beta2: float) -> dict[str, Tensor]:
    """Adam's v without its bias, corrected for each entry's own number of steps. It is NaN where an entry had
    no step.
    """
    found = {}
    for name, entries in state.items():
        own = entries["step"] - entries.get(MISSED, 0)
        bias = torch.where(own > 0, 1 - beta2**own, torch.nan)
        found[name] = entries["exp_avg_sq"] / bias
    return found


def _check_way_back(plan: GrowthPlan, parent: nn.Module, large: nn.Module, fused: bool) -> None:
    back = restricted(plan, parent, dict(large.named_parameters()), fused)
    for name, parameter in parent.named_parameters():
        shared = fused and not any(plan.tensors[name].maps) if name in plan.tensors else True
        if not shared and not torch.allclose(back[name], parameter, atol=1e-4, rtol=1e-3):
            raise MeristemError(
                f"{name} of the small network cannot be read back from the large one: this growth mixes units"
            )
