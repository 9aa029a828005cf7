"""Nodes that make a network from others: grow, fuse, average, assemble. Each returns the fields of its
`NodeResult`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from meristem.anatomy import Anatomy
from meristem.checkpoints import open_model
from meristem.checkpoints.write import write_model
from meristem.errors import MeristemError
from meristem.growth import Growth, LiGO, Method, Prune
from meristem.growth.optimizers.optimizer import amplitudes, grow_state
from meristem.incubation import Incubation, assemble
from meristem.recipes.node import Job, NodeResult, load_result
from meristem.recipes.specs.nodes import AverageSpec, FuseSpec, GrowSpec
from meristem.recipes.tasks import Task
from meristem.streams import Streams

FIT_BATCH = 8  # examples in each step of a method that learns its growth
LOOKED_AT = 128  # examples for a method that chooses by data

Outcome = dict[str, Any]


def grow_node(job: Job, spec: GrowSpec, task: Callable[[], Task]) -> Outcome:
    from meristem.checkpoints.record import growth_record
    from meristem.recipes.training.left import save_state

    (parent,) = job.parent_directories
    source = str(parent / "model")
    small = open_model(source)
    methods, flops = _fitted(spec, job.streams, task, small)
    growth = Growth.of(small, methods)
    record = growth_record(growth, source)
    write_model(growth.model, job.directory / "model", record, tokenizer_from=Path(source), overwrite=True)
    if spec.optimizer == "carry":
        state = _state_to_carry(parent)
        for plan in growth.plans:
            state = grow_state(plan, state)
        save_state(state, job.directory / "optimizer.safetensors")
    factors = {name: list(ab) for name, ab in amplitudes(growth.plans).items()}
    details = {"certificate": record["certificate"], "amplitudes": factors}
    return {"flops": flops, "parameters": count_parameters(growth.model), "details": details}


def fuse_node(job: Job, spec: FuseSpec) -> Outcome:
    from meristem.checkpoints.record import fusion_record
    from meristem.growth.fuse import fuse_with_certificate
    from meristem.growth.fusion.optimizer import fuse_state
    from meristem.recipes.training.left import save_state

    parents = job.parent_directories
    sources = [str(parent / "model") for parent in parents]
    opened = {source: open_model(source) for source in dict.fromkeys(sources)}
    fusion = fuse_with_certificate([opened[source] for source in sources], spec.method(job.streams.seed("growth")))
    record = fusion_record(fusion, sources)
    write_model(fusion.model, job.directory / "model", record, tokenizer_from=Path(sources[0]), overwrite=True)
    if spec.optimizer == "carry":
        state = fuse_state(fusion, [_state_to_carry(parent) for parent in parents])
        save_state(state, job.directory / "optimizer.safetensors")
    details = {"certificate": record["certificate"], "exact": fusion.exact}
    return {"parameters": count_parameters(fusion.model), "details": details}


def average_node(job: Job, spec: AverageSpec, task: Task) -> Outcome:
    """The mean of the last checkpoints of one node, or of the models of several nodes, evaluated on the
    held-out examples.

    Raises:
        MeristemError: if the parent has not kept the checkpoints that the average needs.
    """
    from meristem.checkpoints.average import average
    from meristem.recipes.nodes.ensemble import judge
    from meristem.recipes.training.left import MODEL

    models = [parent / MODEL for parent in job.parent_directories]
    if spec.last:
        models = _last_of(job, spec.last, task)
    parts = average([str(model) for model in models], job.directory / MODEL, spec.weights, overwrite=True)
    model = open_model(str(job.directory / MODEL)).float()
    (metrics,) = judge({"mean": model}, [{"mean": torch.tensor(1.0)}], task, job.split)
    return {"parameters": count_parameters(model), "metrics": metrics, "details": {"weights": parts}}


def _last_of(job: Job, last: int, task: Task) -> list[Path]:
    """The last models that the parent of an average has left: its end, and those before it at every
    `job.every` steps (not those in between, at which decays branched off).

    Raises:
        MeristemError: if it has not kept one of them.
    """
    from meristem.recipes.training.left import MODEL, kept_at

    (parent,) = job.parent_directories
    before, result = Job.load(parent), load_result(parent)
    assert before.node.train is not None
    assert result is not None
    details = result.details
    end = details.get("best_at") or details.get("stopped_at") or before.node.train.steps(task.tokens_per_example)
    steps = list(range(job.every, end, job.every))[-(last - 1) :]
    if len(steps) < last - 1:
        raise MeristemError(
            f"{job.label}: {before.label} ended at step {end}, with {len(steps) + 1} checkpoints at every {job.every} steps, and the "
            f"average needs {last}; give that node a smaller `keep_every`"
        )
    missing = [step for step in steps if not (kept_at(parent, step) / MODEL).exists()]
    if missing:
        kept = sorted(int(p.name) for p in (parent / "kept").glob("[0-9]*"))
        raise MeristemError(
            f"{job.label}: {before.label} has kept no checkpoint at step {missing[0]}, only at {kept or 'its end'}; it ran with another "
            f"`keep_every`. Give it that one again, or remove {parent} to run it again"
        )
    return [*(kept_at(parent, step) / MODEL for step in steps), parent / MODEL]


def assemble_node(job: Job) -> Outcome:
    from meristem.checkpoints.record import assembly_record

    incubations, sources = [], [str(parent / "model") for parent in job.parent_directories]
    for source, parent in zip(sources, job.parent_directories, strict=True):
        result: NodeResult | None = load_result(parent)
        assert result is not None
        incubations.append(Incubation.of_record(open_model(source), result.details["incubation"]))
    model = assemble(incubations)
    record = assembly_record(incubations, sources)
    write_model(model, job.directory / "model", record, Path(sources[0]), overwrite=True)
    return {"parameters": count_parameters(model)}


def count_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _state_to_carry(parent: Path) -> Any:
    from meristem.recipes.training.left import load_state

    file = parent / "optimizer.safetensors"
    if not file.exists():
        raise MeristemError(
            f"{parent.name} has no optimizer state to carry (its node trained several kernels, or its optimizer keeps none); use optimizer: reset"
        )
    return load_state(file)


def _fitted(spec: GrowSpec, streams: Streams, open_task: Callable[[], Task], small: Any) -> tuple[list[Method], int]:
    """The methods of the node, with the recipe's data for those that learn their growth or choose by data,
    and the FLOPs of that.

    Raises:
        MeristemError: if ligo is not the first method of a list.
    """
    from torch.utils.data import DataLoader

    from meristem.anatomy.flops import forward_flops, training_flops

    methods, flops = spec.seeded_methods(streams), 0
    for position, method in enumerate(methods):
        if isinstance(method, Prune):
            task = open_task()
            data = task.training_set(LOOKED_AT, Streams(streams.recipe).seed("order"), 0)
            methods[position] = replace(method, batches=list(DataLoader(data, batch_size=FIT_BATCH)))
            flops += LOOKED_AT * method.passes(Anatomy.of(small)) * forward_flops(small, task.example())
        if not isinstance(method, LiGO):
            continue
        if position:
            raise MeristemError("ligo learns width and depth together; it comes first in a list of methods")
        task, examples = open_task(), method.steps * FIT_BATCH
        data = task.training_set(examples, Streams(streams.recipe).seed("order"), 0)
        methods[position] = method.fit(small, DataLoader(data, batch_size=FIT_BATCH))
        plan = methods[position].plan(Anatomy.of(small), small)
        target = plan.target.build(plan.target.sizes, plan.target.depths)
        flops = examples * training_flops(target, task.example())
    return methods, flops
