"""The files of a training: its model at the end, and models with optimizer states from which decays branch
off.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from meristem.checkpoints.write import write_json
from meristem.growth.optimizers.optimizer import State, named_state
from meristem.growth.tensors.dtensors import whole
from meristem.recipes.modifiers import Modifier
from meristem.recipes.tasks import Task

MODEL, OPTIMIZER, COST = "model", "optimizer.safetensors", "cost.json"


def leave(
    model: nn.Module, optimizer: Any, modifiers: Sequence[Modifier], task: Task, directory: Path, first: bool
) -> None:
    """Write the trained model (for kernels, their mean) with its tokenizer, and its optimizer state by
    parameter name. Sharded ones are gathered, which needs all processes. The `first` process writes.
    """
    weights: Mapping[str, Tensor] = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    state: dict[str, dict[str, Tensor]] = {}
    if all(modifier.keeps_moments for modifier in modifiers):
        named = named_state(plain_optimizer(optimizer), model)
        state = {name: {key: whole(value) for key, value in entries.items()} for name, entries in named.items()}
    for modifier in reversed(modifiers):
        weights, model = modifier.leave(weights), modifier.saved_as(model)
    if not first:
        return
    model.save_pretrained(directory / MODEL, state_dict=dict(weights))  # type: ignore[operator]
    task.leave(directory / MODEL)
    if state:
        save_state(state, directory / OPTIMIZER)


class KeepOnTheWay(TrainerCallback):
    """Saves the model and its optimizer at these optimizer steps in `kept/STEP/`, atomically."""

    def __init__(
        self, steps: Collection[int], modifiers: Sequence[Modifier], task: Task, directory: Path, costs: Any
    ) -> None:
        self.steps, self.modifiers, self.task, self.directory, self.costs = (
            set(steps),
            modifiers,
            task,
            directory,
            costs,
        )
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        step = state.global_step
        if step not in self.steps:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
        first = state.is_world_process_zero
        with whole_or_not_at_all(kept_at(self.directory, step), first) as partial:
            leave(model, optimizer, self.modifiers, self.task, partial, first)
            if first:
                write_json(partial / COST, self.costs(step))


@contextlib.contextmanager
def whole_or_not_at_all(place: Path, first: bool) -> Iterator[Path]:
    """A directory to write to. The `first` process creates it, and it replaces `place` at the end of this
    context.
    """
    partial = place.with_name(f".{place.name}.partial")
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    yield partial
    if first:
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)


def kept_at(directory: Path, step: int) -> Path:
    """The directory in which a node keeps the state of this step."""
    return directory / "kept" / str(step)


def plain_optimizer(optimizer: Any) -> Optimizer:
    """torch's optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def save_state(state: State, file: Path) -> None:
    """Optimizer state as safetensors, keyed "parameter::entry"."""
    tensors = {
        f"{name}::{key}": value.contiguous() for name, entries in state.items() for key, value in entries.items()
    }
    save_file(tensors, file)


def load_state(file: Path) -> State:
    """The state that `save_state` wrote. It is empty if the optimizer has none, or if it was not saved
    because it was that of kernels.
    """
    if not file.exists():
        return {}
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(file).items():
        name, _, entry = key.partition("::")
        state.setdefault(name, {})[entry] = value
    return state
