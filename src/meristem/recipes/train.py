"""A train node: transformers' own Trainer, resumable at any moment, with its cost counted."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from meristem.errors import MeristemError
from meristem.growth.block_steps import count_blocks_apart
from meristem.growth.optimizer import State, load_named_state, scaled_groups
from meristem.growth.optimizer_families import family_of
from meristem.growth.provenance import Provenance
from meristem.recipes.early_stop import EarlyStop, stopped_at
from meristem.recipes.guards import LossGuard, last_whole_checkpoint
from meristem.recipes.left import KeepOnTheWay, leave, plain_optimizer
from meristem.recipes.left import load_state as load_state
from meristem.recipes.modifiers import Modifier, Setting
from meristem.recipes.node import CHECKPOINTS
from meristem.recipes.progress import ProgressLine
from meristem.recipes.sharding import all_sharded
from meristem.recipes.spikes import Spikes
from meristem.recipes.status import StatusFile
from meristem.recipes.tasks import Task
from meristem.recipes.tasks.task import Split
from meristem.recipes.train_spec import SpikesSpec, TrainSpec
from meristem.recipes.trainer_keys import CHECKPOINTING
from meristem.streams import Streams
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
            load_named_state(plain_optimizer(optimizer), model, self.initial_state)
        else:
            count_blocks_apart(plain_optimizer(optimizer))


class NodeArguments(TrainingArguments):
    """One device for each process. (A Trainer spreads a single process over all the GPUs it sees by nn.DataParallel, whose batches are
    so many times as large, which would be another run on every machine.)"""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class NodeTrainer(Trainer):
    """Trainer with learning rates by parameter, as a growth or the recipe asks for them, and a guard that sees every loss."""

    def __init__(
        self,
        *args: Any,
        amplitudes: Mapping[str, tuple[float, float]],
        rates: Mapping[str, float],
        guard: LossGuard,
        spikes: SpikesSpec | None = None,
        modifiers: Sequence[Modifier] = (),
        **kwargs: Any,
    ) -> None:
        self._amplitudes, self._rates, self._guard, self._modifiers = amplitudes, rates, guard, modifiers
        self.spikes = Spikes(spikes, self._mean, guard.end) if spikes else None
        super().__init__(*args, **kwargs)
        if self.spikes:
            self.add_callback(self.spikes)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._guard.see(loss, self.state.global_step + 1)
        if self.spikes:
            self.spikes.see(loss)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's own loss; in training, what the run's methods make of it."""
        given = dict(inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

        def share(rows: int) -> Any:
            return rows * processes / num_items_in_batch if counted else 1.0

        for modifier in self._modifiers if model.training else ():
            loss = modifier.objective(loss, given, outputs, share)
        return (loss, outputs) if return_outputs else loss

    def _mean(self, loss: torch.Tensor) -> torch.Tensor:
        """Over all processes."""
        return self.accelerator.reduce(loss, "mean")  # type: ignore[return-value]

    def create_optimizer(self, *args: Any, **kwargs: Any):
        optimizer = super().create_optimizer(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self._amplitudes:
            _regroup(optimizer, scaled_groups(optimizer.param_groups, model, self._amplitudes, family_of(optimizer)))
        if self._rates:
            _regroup(optimizer, with_rates(optimizer.param_groups, model, self._rates))
        return optimizer


def _regroup(optimizer: Any, groups: Sequence[dict[str, Any]]) -> None:
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group(group)


def with_rates(
    groups: Sequence[Mapping[str, Any]], model: nn.Module, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Parameter groups split so that the learning rate of each parameter is multiplied by the factor of the first pattern that its name
    matches somewhere.

    Raises:
        MeristemError: for a pattern that matches no parameter's name.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    idle = [pattern for pattern in rates if not any(re.search(pattern, name) for name in names.values())]
    if idle:
        raise MeristemError(
            f"learning_rates: no parameter's name matches {idle[0]!r}; names are such as {next(iter(names.values()))!r}"
        )
    split: dict[tuple[int, float], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            name = names[id(parameter)]
            factor = next((rate for pattern, rate in rates.items() if re.search(pattern, name)), 1.0)
            scaled = {key: group[key] * factor for key in ("lr", "initial_lr") if key in group}
            split.setdefault((number, factor), {**group, **scaled, "params": []})["params"].append(parameter)
    return list(split.values())


@dataclass(frozen=True)
class Origin:
    """What a training begins with beside its model.

    Args:
        trained: whether the model comes from another node.
        read: examples that earlier nodes have read.
        optimizer_state: by parameter name.
        amplitudes: scales that a growth gave the weights (see `growth.optimizer.amplitudes`).
        provenance: which entries of the model a growth has added.
        teacher: the directory of a model to learn from.
    """

    trained: bool = False
    read: int = 0
    optimizer_state: State | None = None
    amplitudes: Mapping[str, tuple[float, float]] | None = None
    provenance: Provenance | None = None
    teacher: Path | None = None


def train(
    model: nn.Module,
    spec: TrainSpec,
    task: Task,
    directory: Path,
    *,
    label: str,
    streams: Streams,
    origin: Origin,
    split: Split = "eval",
    keep: Sequence[int] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train `model` in `directory`, resuming whatever stands there, and leave `model/` and `optimizer.safetensors`.

    Args:
        streams: the seeds of all that is random.
        split: what it is evaluated on.
        keep: optimizer steps at which model and optimizer are left too.

    Returns:
        flops, seconds, examples, tokens, metrics, curve, parameters and details, as `NodeResult` wants them.

    Raises:
        MeristemError: if data, network and options do not fit each other.
        Diverged: for a loss that is no number.
    """
    task.check(model, label)
    steps, modifiers = spec.steps(task.tokens_per_example), spec.modifiers()
    from_first = spec.is_sharded_from_first and all_sharded(model)
    per_example, seed = task.tokens_per_example, streams.seed("training")
    arguments = _arguments(spec, directory / CHECKPOINTS, steps, seed, per_example, from_first)
    last = last_whole_checkpoint(directory / CHECKPOINTS)
    examples = task.training_set(steps * spec.batch_size, streams.seed("order"), origin.read)
    micro_batch = arguments.per_device_train_batch_size
    setting = Setting(
        steps,
        spec.batch_size,
        micro_batch,
        origin.trained,
        streams,
        examples,
        origin.provenance,
        task.answers,
        task.example(),
        origin.teacher,
    )
    read = examples
    if ended := stopped_at(last):  # it was killed between its last step and its result
        arguments.max_steps, read = (
            ended,
            task.training_set(ended * spec.batch_size, streams.seed("order"), origin.read),
        )
    model, flops = _prepared(model, spec, task, modifiers, setting)
    moments = (
        origin.optimizer_state if all(modifier.keeps_moments for modifier in modifiers) and not spec.incubate else None
    )
    stopwatch, guard = Stopwatch(), LossGuard(label, directory)

    def costs(step: int) -> dict[str, float]:
        read = step * spec.batch_size
        return {
            "step": step,
            "examples": read,
            "tokens": read * task.tokens_per_example,
            "flops": flops[step],
            "seconds": stopwatch.seconds,
        }

    keeping = KeepOnTheWay(keep, modifiers, task, directory, costs)
    own = [guard, stopwatch, keeping, ProgressLine(label), StatusFile(directory, flops)]
    own += [CarriedState(moments)] if moments else []
    trainer = NodeTrainer(
        model=model,
        args=arguments,
        train_dataset=read,
        eval_dataset=task.evaluation_set(split),
        callbacks=[*own, *(callback for modifier in modifiers for callback in modifier.callbacks()), *callbacks],
        amplitudes=(origin.amplitudes or {}) if spec.scale_learning_rate else {},
        rates=spec.learning_rates,
        guard=guard,
        modifiers=modifiers,
        spikes=spec.spikes,
        **task.trainer_options(),
    )
    early = EarlyStop(spec.early_stop, task.evaluation_set("tune")) if spec.early_stop else None
    if early:
        early.trainer = trainer
        trainer.add_callback(early)
    trainer.remove_callback(PrinterCallback)
    keeping.trainer = trainer
    with contextlib.ExitStack() as stack:
        for modifier in modifiers:
            stack.enter_context(modifier.within())
        trainer.train(resume_from_checkpoint=last)
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if trainer.is_world_process_zero():
        shutil.rmtree(directory / "model", ignore_errors=True)  # of a run that was killed while leaving it
    leave(trained, trainer.optimizer, modifiers, task, directory, trainer.is_world_process_zero())
    curve = _curve(trainer.state.log_history, costs)
    details: dict[str, Any] = {"skipped_steps": trainer.spikes.skipped} if trainer.spikes else {}
    if early:
        steps = early.stopped or steps
        details |= {"stopped_at": early.stopped, "best_tune_loss": early.best}
    for modifier in modifiers:
        details |= modifier.details()
    total = {key: value for key, value in costs(steps).items() if key != "step"}
    metrics = {name: curve[-1][name] for name in MEASURED if name in curve[-1] and name.startswith("eval")}
    return {
        **total,
        "metrics": metrics,
        "curve": curve,
        "details": details,
        "parameters": _saved_parameters(model, modifiers),
    }


MEASURED = ("eval_loss", "eval_accuracy", "tune_loss")


def _curve(history: Sequence[Mapping[str, Any]], costs: Any) -> list[dict[str, float]]:
    """One point for each evaluation, the last where a resume has repeated one."""
    evaluations = {entry["step"]: entry for entry in history if "train_seconds" in entry}
    return [
        {
            **{key: value for key, value in costs(int(entry["step"])).items() if key != "tokens"},
            "seconds": entry["train_seconds"],
            **{name: entry[name] for name in MEASURED if name in entry},
        }
        for entry in evaluations.values()
    ]


def _saved_parameters(model: nn.Module, modifiers: Sequence[Modifier]) -> int:
    for modifier in reversed(modifiers):
        model = modifier.saved_as(model)
    return sum(parameter.numel() for parameter in model.parameters())


def _prepared(
    model: nn.Module, spec: TrainSpec, task: Task, modifiers: Sequence[Modifier], setting: Setting
) -> tuple[nn.Module, list[int]]:
    """The network that is trained, and the FLOPs after each optimizer step, from 0 on.

    Kernels cost nothing that is counted, so the plain network stands for the one with kernels.
    """
    for modifier in modifiers:
        model = modifier.prepare(model, setting)
    plain = model
    for modifier in reversed(modifiers):
        plain = modifier.saved_as(plain)
    counter = PathFlops(plain, task.example())
    each = setting.batch_size // setting.micro_batch
    paths = next((found for modifier in modifiers if (found := modifier.paths()) is not None), None)
    with _checkpointing(plain, spec.trainer):
        micro: Iterator[int] = (counter.of(path) for path in paths) if paths is not None else iter(())
        whole = counter.of({}) if paths is None else 0
        beside = each * sum(modifier.more_flops() for modifier in modifiers)
        steps = [
            setting.micro_batch * ((sum(islice(micro, each)) if paths is not None else each * whole) + beside)
            for _ in range(setting.steps)
        ]
    return model, list(accumulate(steps, initial=0))


@contextlib.contextmanager
def _checkpointing(model: Any, trainer: Mapping[str, Any]) -> Iterator[None]:
    """The network as the Trainer will run it, if activations are computed again."""
    sharded = trainer.get("fsdp_config")
    wanted = any(trainer.get(key) for key in CHECKPOINTING)
    if not wanted and not (isinstance(sharded, Mapping) and sharded.get("activation_checkpointing")):
        yield
        return
    own = next((trainer[key] for key in (f"{name}_kwargs" for name in CHECKPOINTING) if trainer.get(key)), None)
    model.activation_checkpointing_enable(own)
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def _arguments(
    spec: TrainSpec, directory: Path, steps: int, seed: int, tokens_per_example: int = 0, from_first: bool = False
) -> TrainingArguments:
    every = max(1, steps // spec.evaluations)
    save = spec.step_at(spec.checkpoint_every, tokens_per_example) if spec.checkpoint_every else every
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
        "per_device_eval_batch_size": max(1, spec.batch_size // processes),
        "learning_rate": spec.rate,
        **_schedule(spec, steps),
        "weight_decay": spec.weight_decay,
        "adam_beta2": ADAM_BETA2,
        "eval_strategy": "steps",
        "eval_steps": every,
        "eval_on_start": True,
        "save_steps": save,
        "save_total_limit": 2,
        "logging_steps": every,
        "logging_nan_inf_filter": False,
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
    if from_first:
        settings["fsdp_config"] = {"cpu_ram_efficient_loading": True, **(spec.trainer.get("fsdp_config") or {})}
    try:
        return NodeArguments(**settings)
    except (TypeError, ValueError) as error:
        raise MeristemError(f"trainer: {error}") from error


def _schedule(spec: TrainSpec, steps: int) -> dict[str, Any]:
    """The learning rate over the run, as the Trainer has it."""
    if spec.schedule != "wsd":
        return {"lr_scheduler_type": spec.schedule, "warmup_steps": spec.warmup}
    warmup = math.ceil(spec.warmup * steps)
    decay = min(round(spec.decay_share * steps), steps - warmup)
    if not decay:
        return {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": spec.warmup}
    own = {"num_decay_steps": decay, "decay_type": spec.decay_shape or "1-sqrt"}
    return {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": warmup, "lr_scheduler_kwargs": own}
