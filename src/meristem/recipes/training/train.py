"""A train node: transformers' own Trainer, which can be resumed at any time, with its costs counted."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PrinterCallback, TrainerCallback

from meristem.growth.optimizers.optimizer import State
from meristem.growth.provenance import Provenance
from meristem.recipes.modifiers import Setting
from meristem.recipes.node import CHECKPOINTS
from meristem.recipes.sharding import all_sharded, is_first_process
from meristem.recipes.specs.train_spec import TrainSpec
from meristem.recipes.status import StatusFile
from meristem.recipes.tasks import Task
from meristem.recipes.tasks.task import Split
from meristem.recipes.training.account import Account, saved_parameters
from meristem.recipes.training.arguments import trainer_arguments
from meristem.recipes.training.callbacks import CarriedState, Stopwatch
from meristem.recipes.training.early_stop import BEST, EarlyStop, stopped_at
from meristem.recipes.training.guards import LossGuard, full_disk, last_whole_checkpoint
from meristem.recipes.training.left import KeepOnTheWay, leave
from meristem.recipes.training.progress import ProgressLine
from meristem.recipes.training.step_flops import prepared
from meristem.recipes.training.trainer import NodeTrainer
from meristem.streams import Streams


@dataclass(frozen=True)
class Origin:
    """The state with which a training begins, apart from its model.

    Args:
        trained: whether the model comes from another node.
        read: the number of examples that earlier nodes have read.
        optimizer_state: the optimizer state by parameter name.
        asked_for: whether the recipe requests this state. Otherwise, an optimizer of another kind begins
            without it.
        amplitudes: the scales that a growth gave the weights (see `growth.optimizers.optimizer.amplitudes`).
        provenance: the entries of the model that a growth has added.
        teacher: the directory of a model to learn from.
    """

    trained: bool = False
    read: int = 0
    optimizer_state: State | None = None
    amplitudes: Mapping[str, tuple[float, float]] | None = None
    provenance: Provenance | None = None
    teacher: Path | None = None
    asked_for: bool = True


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
    """Train `model` in `directory`, resuming from a checkpoint if there is one, and write `model/` and
    `optimizer.safetensors`.

    Args:
        model: the network.
        spec: the options of the train node.
        task: the task.
        directory: the directory of the node.
        label: the name of the node in messages.
        streams: the seeds of all random numbers.
        origin: the state with which the training begins.
        split: the split on which it is evaluated.
        keep: the optimizer steps at which model and optimizer are also saved.
        callbacks: further TrainerCallbacks.

    Returns:
        The fields flops, seconds, examples, tokens, metrics, curve, parameters and details of a `NodeResult`.

    Raises:
        MeristemError: if data, network and options do not fit each other.
        Diverged: if a loss is not finite, or if it jumps and `spikes` ends the run.
    """
    task.check(model, label)
    return _Run(spec, task, directory, label, streams, origin).train(model, split, keep, callbacks)


class _Run:
    """One train node: its parts, in the order in which `train` makes them."""

    def __init__(
        self, spec: TrainSpec, task: Task, directory: Path, label: str, streams: Streams, origin: Origin
    ) -> None:
        self.spec, self.task, self.directory, self.label = spec, task, directory, label
        self.streams, self.origin, self.modifiers = streams, origin, spec.modifiers()
        self.steps = spec.steps(task.tokens_per_example)
        self.checkpoint = last_whole_checkpoint(directory / CHECKPOINTS)
        self.early: EarlyStop | None = None

    def train(
        self, model: nn.Module, split: Split, keep: Sequence[int], callbacks: Sequence[TrainerCallback]
    ) -> dict[str, Any]:
        trainer, account = self._trainer(model, split, keep, callbacks)
        with contextlib.ExitStack() as stack:
            for modifier in self.modifiers:
                stack.enter_context(modifier.within())
            stack.enter_context(full_disk(self.label, self.directory))
            trainer.train(resume_from_checkpoint=self.checkpoint)
        self._leave(trainer)
        steps = (self.early.stopped if self.early else None) or self.steps
        best = self.early.best_at if self.early else None
        outcome = account.outcome(steps, trainer.state.log_history, self._details(trainer), best)
        return {**outcome, "parameters": saved_parameters(self.trained, self.modifiers)}

    def _trainer(
        self, model: nn.Module, split: Split, keep: Sequence[int], callbacks: Sequence[TrainerCallback]
    ) -> tuple[NodeTrainer, Account]:
        spec, task = self.spec, self.task
        seed, from_first = self.streams.seed("training"), spec.is_sharded_from_first and all_sharded(model)
        place = self.directory / CHECKPOINTS
        arguments = trainer_arguments(spec, place, self.steps, seed, task.tokens_per_example, from_first)
        self.trained, flops = prepared(
            model, spec, task, self.modifiers, self._setting(arguments.per_device_train_batch_size)
        )
        ended = stopped_at(self.checkpoint)  # it was killed between its last step and its result
        arguments.max_steps = ended or self.steps
        account, guard = Account(spec, task, flops, Stopwatch()), LossGuard(self.label, self.directory)
        keeping = KeepOnTheWay(keep, self.modifiers, task, self.directory, account.at)
        own = [guard, account.stopwatch, keeping, ProgressLine(self.label), StatusFile(self.directory, flops)]
        trainer = NodeTrainer(
            model=self.trained,
            args=arguments,
            train_dataset=self._examples(arguments.max_steps),
            eval_dataset=task.evaluation_set(split),
            callbacks=[*own, *self._callbacks(), *callbacks],
            amplitudes=(self.origin.amplitudes or {}) if spec.scale_learning_rate else {},
            rates=spec.learning_rates,
            guard=guard,
            modifiers=self.modifiers,
            spikes=spec.spikes,
            **task.trainer_options(),
        )
        if self.early:
            self.early.trainer = trainer
            trainer.add_callback(self.early)
        trainer.remove_callback(PrinterCallback)
        keeping.trainer = trainer
        return trainer, account

    def _examples(self, steps: int) -> Any:
        return self.task.training_set(steps * self.spec.batch_size, self.streams.seed("order"), self.origin.read)

    def _setting(self, micro_batch: int) -> Setting:
        origin, task = self.origin, self.task
        run = self.steps, self.spec.batch_size, micro_batch, origin.trained, self.streams, self._examples(self.steps)
        return Setting(*run, origin.provenance, task.answers, task.example(), origin.teacher)

    def _callbacks(self) -> list[TrainerCallback]:
        """The callbacks of every node, followed by those of the node's methods."""
        found: list[TrainerCallback] = []
        keeps_moments = all(modifier.keeps_moments for modifier in self.modifiers) and not self.spec.incubate
        if self.origin.optimizer_state and keeps_moments:
            found.append(CarriedState(self.origin.optimizer_state, asked_for=self.origin.asked_for))
        for modifier in self.modifiers:
            found += modifier.callbacks()
        if self.spec.early_stop:
            place = self.directory / CHECKPOINTS / BEST
            self.early = EarlyStop(self.spec.early_stop, self.task.evaluation_set("tune"), place, self._write)
        return found

    def _leave(self, trainer: NodeTrainer) -> None:
        first = trainer.is_world_process_zero()
        if first:
            shutil.rmtree(self.directory / "model", ignore_errors=True)  # of a run that was killed while writing it
        if self.early and self.early.best_at is not None:
            if first:
                self.early.leave(self.directory)
            return
        trained = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        self._write(trained, trainer.optimizer, self.directory)

    def _write(self, model: Any, optimizer: Any, place: Path) -> None:
        leave(model, optimizer, self.modifiers, self.task, place, is_first_process())

    def _details(self, trainer: NodeTrainer) -> dict[str, Any]:
        details: dict[str, Any] = {"skipped_steps": trainer.spikes.skipped} if trainer.spikes else {}
        if self.early:
            early = self.early
            details |= {"stopped_at": early.stopped, "best_at": early.best_at, "best_tune_loss": early.best}
        for modifier in self.modifiers:
            details |= modifier.details()
        return details
