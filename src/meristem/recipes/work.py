"""What each kind of node does: open a checkpoint, train, decay, grow, fuse, assemble, mix. Each returns the fields of its `NodeResult`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from meristem.anatomy import Anatomy
from meristem.checkpoints import open_model, open_streamed
from meristem.checkpoints.open import local_directory
from meristem.checkpoints.open_streamed import read_lazily
from meristem.checkpoints.write import write_model
from meristem.errors import MeristemError
from meristem.growth import Growth, LiGO, Method, Prune
from meristem.growth.optimizer import amplitudes, grow_state
from meristem.incubation import Incubation, assemble
from meristem.recipes.node import Job, NodeResult, ancestors_of, load_result
from meristem.recipes.sharding import all_sharded, is_first_process, without_weights
from meristem.recipes.specs import AssembleSpec, AverageSpec, CheckpointSpec, EnsembleSpec, FuseSpec, GrowSpec
from meristem.recipes.tasks import Task
from meristem.recipes.train_spec import DecaySpec, TrainSpec
from meristem.streams import Streams

FIT_BATCH = 8  # examples in each step of a method that learns its growth
LOOKED_AT = 128  # examples that a method which chooses by data looks at

Outcome = dict[str, Any]


def work(job: Job, task: Callable[[], Task], callbacks: Sequence[Any] = ()) -> Outcome:
    """Do what the job says and leave its model in its directory.

    Args:
        task: opens the recipe's task, for nodes that read data.
        callbacks: further TrainerCallbacks for a train node.
    """
    spec, began = job.node.spec, time.perf_counter()
    if isinstance(spec, TrainSpec):
        return _train(job, spec, task(), callbacks)
    if isinstance(spec, DecaySpec):
        return _decay(job, spec, task(), callbacks)
    if isinstance(spec, CheckpointSpec):
        outcome = _checkpoint(job, spec)
    elif isinstance(spec, AssembleSpec):
        outcome = _assemble(job)
    elif isinstance(spec, AverageSpec):
        outcome = _average(job, spec, task())
    elif isinstance(spec, EnsembleSpec):
        from meristem.recipes.ensemble import ensemble

        outcome = ensemble(job, spec, task())
    elif isinstance(spec, FuseSpec):
        outcome = _fuse(job, spec)
    else:
        outcome = _grow(job, spec, task)
    return {**outcome, "seconds": time.perf_counter() - began}


def _checkpoint(job: Job, spec: CheckpointSpec) -> Outcome:
    from meristem.checkpoints.record import copy_record

    source = local_directory(spec.source)
    model = open_streamed(str(source))
    write_model(model, job.directory / "model", copy_record(str(source)), tokenizer_from=source, overwrite=True)
    return {"parameters": _parameters(model)}


def _train(job: Job, spec: TrainSpec, task: Task, callbacks: Sequence[Any]) -> Outcome:
    from meristem.recipes.train import Origin, load_state

    teacher = job.parent_directories[-1] / "model" if spec.distill else None
    if spec.model is not None:
        entries, origin = spec.model, Origin(teacher=teacher)
        new = lambda: task.new_model(entries, job.streams.seed("weights"))  # noqa: E731
        model = without_weights(new) if spec.is_sharded_from_first and not is_first_process() else None
        model = model if model is not None and all_sharded(model) else new()
    else:
        parent = job.parent_directories[0]
        model, file = _to_train(parent / "model", spec), parent / "optimizer.safetensors"
        origin = Origin(
            trained=True,
            read=sum(result.examples for result in ancestors_of(job).values()),
            optimizer_state=load_state(file) if file.exists() else None,
            amplitudes=_amplitudes(parent),
            provenance=_provenance(parent),
            teacher=teacher,
        )
    return _trained(job, spec, task, model, origin, job.streams, callbacks)


def _trained(
    job: Job, spec: TrainSpec, task: Task, model: Any, origin: Any, streams: Streams, callbacks: Sequence[Any]
) -> Outcome:
    from meristem.recipes.train import train

    own = {"label": job.label, "streams": streams, "origin": origin, "split": job.split, "keep": job.keep}
    outcome = train(model, spec, task, job.directory, callbacks=callbacks, **own)
    if origin.provenance is not None and not spec.incubate and is_first_process():  # it holds for the trained model too
        from meristem.checkpoints.record import keep_provenance

        keep_provenance(job.directory / "model", origin.provenance)
    return outcome


def _provenance(parent: Path) -> Any:
    """Which entries of a node's model a growth has added; None if none has."""
    from meristem.checkpoints.provenance import read_provenance, recorded_provenance

    model = parent / "model"
    return read_provenance(model) if recorded_provenance(model) is not None else None


def _amplitudes(directory: Path) -> Any:
    """The scales that the last growth gave the weights of the node here, however often it was trained on since; None without a growth."""
    result = load_result(directory)
    while result is not None and "amplitudes" not in result.details:
        own = result.parents[:-1] if "distill" in result.details else result.parents  # the last one is the teacher
        result = load_result(directory.parent / own[0]) if len(own) == 1 else None
    return result.details["amplitudes"] if result else None


def _to_train(directory: Path, spec: TrainSpec) -> Any:
    """A node's model, its weights in float32: in half precision small steps would round to none. Where they are sharded, the first process
    opens them, and the others know their shapes until they get their part."""
    if spec.is_sharded_from_first and not is_first_process():
        shapes, _ = read_lazily(str(directory))
        if all_sharded(shapes):
            return without_weights(lambda: shapes).eval()
    return open_model(str(directory)).float()


def _decay(job: Job, spec: DecaySpec, task: Task, callbacks: Sequence[Any]) -> Outcome:
    """Train on from where another node stood, with its data, its optimizer and a falling learning rate."""
    from meristem.recipes.left import COST, MODEL, OPTIMIZER, kept_at, load_state
    from meristem.recipes.train import Origin

    (parent,) = job.parent_directories
    before = Job.load(parent)
    assert before.node.train is not None
    run = before.node.train
    step, last = run.step_at(spec.at, task.tokens_per_example), run.steps(task.tokens_per_example)
    place = parent if step == last else kept_at(parent, step)
    if not (place / MODEL).exists():
        kept = sorted(int(p.name) for p in (parent / "kept").glob("[0-9]*"))
        raise MeristemError(
            f"{job.label}: {before.label} has kept nothing at step {step}, only at {kept or 'its end'}; it was run before this decay was "
            f"asked for. Branch off one of these, or remove {parent} to run it again"
        )
    whole = load_result(parent)
    assert whole is not None
    cost = json.loads((place / COST).read_text()) if step != last else {
        "step": last, "examples": whole.examples, "tokens": whole.tokens, "flops": whole.flops, "seconds": whole.seconds,
    }  # fmt: skip
    read = cost["examples"] + sum(result.examples for result in ancestors_of(before).values())
    origin = Origin(True, read, load_state(place / OPTIMIZER), _amplitudes(parent), _provenance(parent))
    streams = Streams(job.seed, run.seed)  # the run's own, so that its data go on
    outcome = _trained(job, spec.as_train(run), task, _to_train(place / MODEL, run), origin, streams, callbacks)
    return {**outcome, "taken": {parent.name: cost}}


def _grow(job: Job, spec: GrowSpec, task: Callable[[], Task]) -> Outcome:
    from meristem.checkpoints.record import growth_record
    from meristem.recipes.left import save_state

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
    return {"flops": flops, "parameters": _parameters(growth.model), "details": details}


def _fuse(job: Job, spec: FuseSpec) -> Outcome:
    from meristem.checkpoints.record import fusion_record
    from meristem.growth.fuse import fuse_state, fuse_with_certificate
    from meristem.recipes.left import save_state

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
    return {"parameters": _parameters(fusion.model), "details": details}


def _average(job: Job, spec: AverageSpec, task: Task) -> Outcome:
    """The mean of the last checkpoints of one node, or of several nodes' models, judged on the held-out examples."""
    from meristem.checkpoints.average import average
    from meristem.recipes.ensemble import judge
    from meristem.recipes.left import MODEL

    models = [parent / MODEL for parent in job.parent_directories]
    if spec.last:
        (parent,) = job.parent_directories
        run = Job.load(parent).node.train
        assert run is not None
        every = run.step_at(run.keep_every or 0, task.tokens_per_example)  # decays may have branched off between
        kept = sorted(
            (p for p in (parent / "kept").glob("[0-9]*") if int(p.name) % every == 0), key=lambda p: int(p.name)
        )
        models = [*(place / MODEL for place in kept), *models][-spec.last :]
        if len(models) < spec.last:
            raise MeristemError(
                f"{job.label}: {parent.name} has left {len(models)} checkpoints, {spec.last} are asked for; it was run before this "
                "average was. Remove it to run it again"
            )
    parts = average([str(model) for model in models], job.directory / MODEL, spec.weights, overwrite=True)
    model = open_model(str(job.directory / MODEL)).float()
    (metrics,) = judge({"mean": model}, [{"mean": torch.tensor(1.0)}], task, job.split)
    return {"parameters": _parameters(model), "metrics": metrics, "details": {"weights": parts}}


def _assemble(job: Job) -> Outcome:
    from meristem.checkpoints.record import assembly_record

    incubations, sources = [], [str(parent / "model") for parent in job.parent_directories]
    for source, parent in zip(sources, job.parent_directories, strict=True):
        result: NodeResult | None = load_result(parent)
        assert result is not None
        incubations.append(Incubation.of_record(open_model(source), result.details["incubation"]))
    model = assemble(incubations)
    record = assembly_record(incubations, sources)
    write_model(model, job.directory / "model", record, Path(sources[0]), overwrite=True)
    return {"parameters": _parameters(model)}


def _parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _state_to_carry(parent: Path) -> Any:
    from meristem.recipes.left import load_state

    file = parent / "optimizer.safetensors"
    if not file.exists():
        raise MeristemError(
            f"{parent.name} has no optimizer state to carry (its node trained several kernels); use optimizer: reset"
        )
    return load_state(file)


def _fitted(spec: GrowSpec, streams: Streams, open_task: Callable[[], Task], small: Any) -> tuple[list[Method], int]:
    """The node's methods, with the recipe's data for those that learn their growth or choose by data, and the FLOPs of that."""
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
