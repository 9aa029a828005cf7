"""The cost of each optimizer step of a run, counted before the run begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any

from torch import nn

from meristem.recipes.modifiers import Modifier, Setting
from meristem.recipes.specs.train_spec import TrainSpec
from meristem.recipes.specs.trainer_keys import CHECKPOINTING
from meristem.recipes.tasks import Task
from meristem.subnetworks.flops import PathFlops


def prepared(
    model: nn.Module, spec: TrainSpec, task: Task, modifiers: Sequence[Modifier], setting: Setting
) -> tuple[nn.Module, list[int]]:
    """The network that is trained, and the FLOPs after each optimizer step, from step 0 on.

    The cost of several kernels is not counted, so the FLOPs are those of the plain network.
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
    """The network with activation checkpointing, if the Trainer will use it."""
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
