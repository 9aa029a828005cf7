"""The work of each kind of node: open a checkpoint, train, decay, grow, fuse, assemble, mix. Each returns the
fields of its `NodeResult`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from meristem.checkpoints import open_model, open_streamed
from meristem.checkpoints.open_streamed import read_lazily
from meristem.checkpoints.source import find_source
from meristem.checkpoints.write import write_model
from meristem.errors import MeristemError
from meristem.recipes.node import Job, ancestors_of, load_result
from meristem.recipes.nodes.make import Outcome, assemble_node, average_node, count_parameters, fuse_node, grow_node
from meristem.recipes.sharding import all_sharded, is_first_process, without_weights
from meristem.recipes.specs.decay_spec import DecaySpec
from meristem.recipes.specs.nodes import AssembleSpec, AverageSpec, CheckpointSpec, EnsembleSpec, FuseSpec
from meristem.recipes.specs.train_spec import TrainSpec
from meristem.recipes.tasks import Task
from meristem.streams import Streams


def work(job: Job, task: Callable[[], Task], callbacks: Sequence[Any] = ()) -> Outcome:
    """Do the work of the job and write its model into its directory.

    Args:
        job: the job.
        task: a function that opens the task of the recipe, for nodes that read data.
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
        outcome = assemble_node(job)
    elif isinstance(spec, AverageSpec):
        outcome = average_node(job, spec, task())
    elif isinstance(spec, EnsembleSpec):
        from meristem.recipes.nodes.ensemble import ensemble

        outcome = ensemble(job, spec, task())
    elif isinstance(spec, FuseSpec):
        outcome = fuse_node(job, spec)
    else:
        outcome = grow_node(job, spec, task)
    return {**outcome, "seconds": time.perf_counter() - began}


def _checkpoint(job: Job, spec: CheckpointSpec) -> Outcome:
    from meristem.checkpoints.record import copy_record

    source = find_source(spec.source)
    model = open_streamed(source)
    left = write_model(model, job.directory / "model", copy_record(source), tokenizer_from=source.path, overwrite=True)
    return {"parameters": count_parameters(model), "details": {"left_behind": list(left)} if left else {}}


def _train(job: Job, spec: TrainSpec, task: Task, callbacks: Sequence[Any]) -> Outcome:
    from meristem.recipes.training.left import load_state
    from meristem.recipes.training.train import Origin

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
            optimizer_state=load_state(file),
            asked_for=Job.load(parent).node.train is None,
            amplitudes=_amplitudes(parent),
            provenance=_provenance(parent),
            teacher=teacher,
        )
    return _trained(job, spec, task, model, origin, job.streams, callbacks)


def _trained(
    job: Job, spec: TrainSpec, task: Task, model: Any, origin: Any, streams: Streams, callbacks: Sequence[Any]
) -> Outcome:
    from meristem.recipes.training.train import train

    own = {"label": job.label, "streams": streams, "origin": origin, "split": job.split, "keep": job.keep}
    outcome = train(model, spec, task, job.directory, callbacks=callbacks, **own)
    if origin.provenance is not None and not spec.incubate and is_first_process():  # it holds for the trained model too
        from meristem.checkpoints.record import keep_provenance

        keep_provenance(job.directory / "model", origin.provenance)
    return outcome


def _provenance(parent: Path) -> Any:
    """The entries of a node's model that a growth has added, or None."""
    from meristem.checkpoints.provenance import read_provenance, recorded_provenance

    model = parent / "model"
    return read_provenance(model) if recorded_provenance(model) is not None else None


def _amplitudes(directory: Path) -> Any:
    """The scales that the last growth gave the weights of this node, also if it was trained since. None
    without a growth.
    """
    result = load_result(directory)
    while result is not None and "amplitudes" not in result.details:
        own = result.parents[:-1] if "distill" in result.details else result.parents  # the last one is the teacher
        result = load_result(directory.parent / own[0]) if len(own) == 1 else None
    return result.details["amplitudes"] if result else None


def _to_train(directory: Path, spec: TrainSpec) -> Any:
    """The model of a node, with weights in float32, since small steps would be lost by rounding in half
    precision. If the weights are sharded, the first process opens them, and the others know only their shapes
    until they get their part.
    """
    if spec.is_sharded_from_first and not is_first_process():
        shapes, _ = read_lazily(str(directory))
        if all_sharded(shapes):
            return without_weights(lambda: shapes).eval()
    return open_model(str(directory)).float()


def _decay(job: Job, spec: DecaySpec, task: Task, callbacks: Sequence[Any]) -> Outcome:
    """Continue the training of another node from one of its steps, with its data, its optimizer and a falling
    learning rate.

    Raises:
        MeristemError: if that node has kept no checkpoint at this step.
    """
    from meristem.recipes.training.left import COST, MODEL, OPTIMIZER, kept_at, load_state
    from meristem.recipes.training.train import Origin

    (parent,) = job.parent_directories
    before = Job.load(parent)
    assert before.node.train is not None
    run = before.node.train
    step, last = run.step_at(spec.at, task.tokens_per_example), run.steps(task.tokens_per_example)
    place = parent if step == last else kept_at(parent, step)
    if not (place / MODEL).exists():
        kept = sorted(int(p.name) for p in (parent / "kept").glob("[0-9]*"))
        raise MeristemError(
            f"{job.label}: {before.label} has kept no checkpoint at step {step}, only at {kept or 'its end'}; it ran before this decay was "
            f"added. Branch off one of these, or remove {parent} to run it again"
        )
    whole = load_result(parent)
    assert whole is not None
    cost = json.loads((place / COST).read_text()) if step != last else {
        "step": last, "examples": whole.examples, "tokens": whole.tokens, "flops": whole.flops, "seconds": whole.seconds,
    }  # fmt: skip
    read = cost["examples"] + sum(result.examples for result in ancestors_of(before).values())
    origin = Origin(True, read, load_state(place / OPTIMIZER), _amplitudes(parent), _provenance(parent))
    streams = Streams(job.seed, run.seed)  # the run's own, so that its data continue
    outcome = _trained(job, spec.as_train(run), task, _to_train(place / MODEL, run), origin, streams, callbacks)
    return {**outcome, "taken": {parent.name: cost}}
