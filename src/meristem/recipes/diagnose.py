"""A growth point of a recipe, measured: how much the training after it works against the training before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import default_data_collator

from meristem.anatomy import Anatomy
from meristem.checkpoints import open_model
from meristem.dynamics import Junction, junction, junction_learning_rate
from meristem.dynamics.junction import language_loss, restricted
from meristem.errors import MeristemError, nearest
from meristem.growth.fuse import fuse_with_certificate
from meristem.growth.plan import GrowthPlan
from meristem.recipes.run import directory_of, run
from meristem.recipes.schema import Recipe
from meristem.recipes.tasks import open_task


@dataclass(frozen=True)
class Diagnosis:
    """The measurement at a node, and the learning rate there that keeps h |[g, f]| / |f| at `bound`."""

    node: str
    seed: int
    junction: Junction
    bound: float
    learning_rate: float


def diagnose(recipe: Recipe, node: str, out: Path, bound: float = 0.1, sequences: int = 8) -> list[Diagnosis]:
    """Measure the growth or fusion node `node` of a recipe, for each seed, on a batch of its own training text.

    What the node comes from is run first, if it has not been.

    Args:
        bound: of the conflict at the junction, per step.
        sequences: of the probe batch.

    Raises:
        MeristemError: for a node that does not grow, or whose growth mixes units so that the small network cannot be read back.
    """
    if node not in recipe.nodes:
        raise MeristemError(f"no node {node!r} in this recipe; {nearest(node, recipe.nodes)}")
    spec = recipe.nodes[node]
    if spec.train:
        raise MeristemError(f"{node!r} is a train node; diagnose wants one that grows or fuses")
    wanted = {name: recipe.nodes[name] for name in recipe.ancestors(node)}
    results = run(recipe.model_copy(update={"nodes": wanted, "race": None}), out)
    task = open_task(recipe.data)
    found = []
    for seed, done in results.items():
        parents = [open_model(str(directory_of(out, done[name]) / "model")).float() for name in spec.parents]
        large = open_model(str(directory_of(out, done[node]) / "model")).float()
        plans, weights = _plans(recipe, node, seed, parents)
        for plan, parent in zip(plans, parents, strict=True):
            _check_way_back(plan, parent, large, fused=len(plans) > 1)
        examples = task.training_set(sequences, seed, 0)
        batch = default_data_collator([examples[i] for i in range(sequences)])
        measured = junction(plans, parents, large, language_loss(batch), weights)
        found.append(Diagnosis(node, seed, measured, bound, junction_learning_rate(measured, bound)))
    return found


def _plans(
    recipe: Recipe, node: str, seed: int, parents: list[nn.Module]
) -> tuple[list[GrowthPlan], tuple[float, ...]]:
    spec = recipe.nodes[node]
    if spec.fuse:
        fusion = fuse_with_certificate(parents, spec.fuse.method(seed), verify=False)
        return list(fusion.plans), fusion.weights
    assert spec.grow is not None
    methods = spec.grow.build_methods()
    if len(methods) > 1:
        raise MeristemError(f"{node!r} grows by {len(methods)} methods in turn; diagnose measures one: split the node")
    return [methods[0].plan(Anatomy.of(parents[0]), parents[0])], (1.0,)


def _check_way_back(plan: GrowthPlan, parent: nn.Module, large: nn.Module, fused: bool) -> None:
    back = restricted(plan, parent, dict(large.named_parameters()), fused)
    for name, parameter in parent.named_parameters():
        shared = fused and not any(plan.tensors[name].maps) if name in plan.tensors else True
        if not shared and not torch.allclose(back[name], parameter, atol=1e-4, rtol=1e-3):
            raise MeristemError(
                f"{name} of the small network cannot be read back from the large one: this growth mixes units"
            )
