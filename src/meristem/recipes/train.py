"""A train node: transformers' own Trainer, resumable at any moment, with its cost counted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from meristem.data import Ordered
from meristem.errors import MeristemError, nearest
from meristem.growth.block_steps import count_blocks_apart
from meristem.growth.dtensors import whole
from meristem.growth.optimizer import State, load_named_state, named_state, scaled_groups
from meristem.incubation import Incubation, cached_prefix
from meristem.kernels import MajorityCallback, deploy
from meristem.kernels.majority import mixtures
from meristem.recipes.progress import ProgressLine
from meristem.recipes.specs import TrainSpec
from meristem.recipes.status import StatusFile
from meristem.recipes.tasks import Task
from meristem.subnetworks import Path as DepthPath
from meristem.subnetworks import Schedule
from meristem.subnetworks.blocks import lists_of_blocks
from meristem.subnetworks.callback import RaptrCallback
from meristem.subnetworks.flops import PathFlops

ADAM_BETA2 = 0.95


class Stopwatch(TrainerCallback):
    """Seconds spent inside training steps, evaluation and saving left out; kept in the log, so a resume goes on."""

    def __init__(self) -> None:
        self.seconds, self._began = 0.0, 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.seconds = next((e["train_seconds"] for e in reversed(state.log_history) if "train_seconds" in e), 0.0)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.seconds += time.perf_counter() - self._began

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        state.log_history[-1]["train_seconds"] = self.seconds


class CarriedState(TrainerCallback):
    """Begins a run with the optimizer state of a grown network. Not earlier, since sharding exchanges the parameters before a run
    begins; a resumed run has its own."""

    def __init__(self, initial_state: State) -> None:
        self.initial_state = initial_state

    def on_train_begin(self, args, state, control, model: Any = None, optimizer: Any = None, **kwargs) -> None:
        if state.global_step == 0:
            load_named_state(_plain(optimizer), model, self.initial_state)
        else:
            count_blocks_apart(_plain(optimizer))


class NodeArguments(TrainingArguments):
    """One device for each process. (A Trainer spreads a single process over all the GPUs it sees by nn.DataParallel, whose batches are
    so many times as large, which would be another run on every machine.)"""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class NodeTrainer(Trainer):
    """Trainer with learning rates by parameter, as a growth asks for them."""

    def __init__(self, *args: Any, amplitudes: Mapping[str, tuple[float, float]], **kwargs: Any) -> None:
        self._amplitudes = amplitudes
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any):
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._amplitudes:
            model = self.accelerator.unwrap_model(self.model)
            groups = scaled_groups(optimizer.param_groups, model, self._amplitudes)
            optimizer.param_groups.clear()
            for group in groups:
                optimizer.add_param_group(group)
        return optimizer


def train(
    model: nn.Module,
    spec: TrainSpec,
    task: Task,
    directory: Path,
    *,
    label: str,
    seed: int,
    offset: int = 0,
    optimizer_state: State | None = None,
    amplitudes: Mapping[str, tuple[float, float]] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    incubation: Incubation | None = None,
) -> dict[str, Any]:
    """Train `model` in `directory`, resuming whatever stands there, and leave `model/` and `optimizer.safetensors`.

    Args:
        offset: examples that earlier nodes have read.
        incubation: if `model` is a hybrid.

    Returns:
        flops, seconds, examples, tokens, metrics and curve, as `NodeResult` wants them.
    """
    task.check(model, label)
    steps = spec.steps(task.tokens_per_example)
    schedules = _schedules(model, spec, steps, seed)
    examples = task.training_set(steps * spec.batch_size, seed, offset)
    cached = incubation if spec.incubate and spec.incubate.cache_prefix else None
    paths = _without_prefix(cached, spec, examples) if cached else _drawn(model, schedules, steps)
    counter = PathFlops(model, task.example())
    flops = list(accumulate((spec.batch_size * counter.of(path) for path in paths), initial=0))
    if schedules:
        callbacks = (RaptrCallback(schedules), *callbacks)
    if spec.majority:
        model = spec.majority.apply(model, seed, trained=spec.from_ is not None)
        callbacks = (MajorityCallback(), *callbacks)
    if optimizer_state and not spec.majority:  # moments of one kernel are none of several
        callbacks = (CarriedState(optimizer_state), *callbacks)
    stopwatch = Stopwatch()
    trainer = NodeTrainer(
        model=model,
        args=_arguments(spec, directory / "trainer", steps, seed),
        train_dataset=examples,
        eval_dataset=task.evaluation_set(),
        callbacks=[stopwatch, ProgressLine(label), StatusFile(directory), *callbacks],
        amplitudes=(amplitudes or {}) if spec.scale_learning_rate else {},
        **task.trainer_options(),
    )
    trainer.remove_callback(PrinterCallback)
    with cached_prefix(cached) if cached else contextlib.nullcontext():
        trainer.train(resume_from_checkpoint=_last_whole_checkpoint(directory / "trainer"))
    _leave(trainer, task, directory)
    evaluations = {entry["step"]: entry for entry in trainer.state.log_history if "train_seconds" in entry}
    measured = ("eval_loss", "eval_accuracy")
    curve = [
        {
            "step": entry["step"],
            "examples": entry["step"] * spec.batch_size,
            "flops": flops[int(entry["step"])],
            "seconds": entry["train_seconds"],
            **{name: entry[name] for name in measured if name in entry},
        }
        for entry in evaluations.values()
    ]
    return {
        "flops": flops[steps],
        "seconds": stopwatch.seconds,
        "examples": steps * spec.batch_size,
        "tokens": steps * spec.batch_size * task.tokens_per_example,
        "metrics": {name: curve[-1][name] for name in measured if name in curve[-1]},
        "curve": curve,
    }


def _schedules(model: nn.Module, spec: TrainSpec, steps: int, seed: int) -> dict[str, Schedule]:
    """A schedule for each axis of depth, if the node trains sub-networks."""
    if spec.subnetwork is None:
        return {}
    return {
        blocks.axis: spec.subnetwork.schedule(len(blocks.modules), steps, seed, sorted(blocks.needed))
        for blocks in lists_of_blocks(model)
    }


def _drawn(model: nn.Module, schedules: Mapping[str, Schedule], steps: int) -> Iterator[Mapping[str, DepthPath]]:
    """The paths of each optimizer step."""
    lists = lists_of_blocks(model) if schedules else []
    for step in range(steps):
        yield {b.name: schedules[b.axis].path(step, b.name) for b in lists}


def _without_prefix(incubation: Incubation, spec: TrainSpec, examples: Ordered) -> Iterator[Mapping[str, DepthPath]]:
    """The paths of each step if the prefix runs for batches with a new example only, and is remembered for the others."""
    (blocks,) = lists_of_blocks(incubation.model)
    first, layers = incubation.division.in_hybrid(incubation.module).start, len(blocks.modules)
    behind = DepthPath(tuple(layer >= first for layer in range(layers)), (1.0,) * layers)
    known: set[int] = set()
    for start in range(0, len(examples), spec.batch_size):
        batch = {examples.order.at(position) for position in range(start, start + spec.batch_size)}
        yield {blocks.name: behind if batch <= known else DepthPath.full(layers)}
        known |= batch


def _arguments(spec: TrainSpec, directory: Path, steps: int, seed: int) -> TrainingArguments:
    every = max(1, steps // spec.evaluations)
    accumulation = int(spec.trainer.get("gradient_accumulation_steps", 1))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if spec.batch_size % (accumulation * processes):
        raise MeristemError(
            f"batch_size {spec.batch_size} is no multiple of gradient_accumulation_steps {accumulation}"
            + (f" x {processes} processes" if processes > 1 else "")
        )
    settings: dict[str, Any] = {
        "output_dir": str(directory),
        "max_steps": steps,
        "per_device_train_batch_size": spec.batch_size // (accumulation * processes),
        "per_device_eval_batch_size": spec.batch_size // processes,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": spec.schedule,
        "warmup_steps": spec.warmup,
        "weight_decay": spec.weight_decay,
        "adam_beta2": ADAM_BETA2,
        "eval_strategy": "steps",
        "eval_steps": every,
        "eval_on_start": True,
        "save_steps": every,
        "save_total_limit": 2,
        "logging_steps": every,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "train_sampling_strategy": "sequential",
        "ddp_find_unused_parameters": bool(spec.subnetwork),
        **spec.trainer,
    }
    try:
        return NodeArguments(**settings)
    except (TypeError, ValueError) as error:
        known = TrainingArguments.__dataclass_fields__
        unknown = next((key for key in spec.trainer if key not in known), None)
        hint = f"unknown key {unknown!r}; {nearest(unknown, known)}" if unknown else str(error)
        raise MeristemError(f"trainer: {hint}") from error


def _last_whole_checkpoint(directory: Path) -> str | None:
    """The latest checkpoint whose trainer state, which the Trainer writes last, can be read."""
    found = sorted(directory.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
            return str(checkpoint)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(checkpoint, ignore_errors=True)  # a kill came between its files
    return None


def _leave(trainer: Trainer, task: Task, directory: Path) -> None:
    """The trained model (of kernels, their mean) with its tokenizer, and its optimizer state by parameter name. Sharded ones are
    gathered, which takes all processes; the first writes."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    has_kernels = any(True for _ in mixtures(model))
    model = deploy(model) if has_kernels else model
    weights = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    state = {}
    if not has_kernels:  # the moments of kernels are none of their mean's
        named = named_state(_plain(trainer.optimizer), model)
        state = {name: {key: whole(value) for key, value in entries.items()} for name, entries in named.items()}
    if not trainer.is_world_process_zero():
        return
    model.save_pretrained(directory / "model", state_dict=weights)  # type: ignore[operator]
    task.leave(directory / "model")
    if state:
        save_state(state, directory / "optimizer.safetensors")
    shutil.rmtree(directory / "trainer")


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it


def save_state(state: State, file: Path) -> None:
    """Optimizer state as safetensors, keyed "parameter::entry"."""
    tensors = {
        f"{name}::{key}": value.contiguous() for name, entries in state.items() for key, value in entries.items()
    }
    save_file(tensors, file)


def load_state(file: Path) -> State:
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(file).items():
        name, _, entry = key.partition("::")
        state.setdefault(name, {})[entry] = value
    return state
