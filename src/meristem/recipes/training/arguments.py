"""From the options of a train node to the arguments of the Trainer."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from meristem.errors import MeristemError
from meristem.recipes.specs.train_spec import TrainSpec
from meristem.recipes.training.trainer import NodeArguments

ADAM_BETA2 = 0.95


def trainer_arguments(
    spec: TrainSpec, directory: Path, steps: int, seed: int, tokens_per_example: int = 0, from_first: bool = False
) -> TrainingArguments:
    """The Trainer's arguments in this process: those of the recipe, and those that a node needs for its
    record.

    Raises:
        MeristemError: if the batch cannot be divided, if a tracker or kernels are not installed, or for
            values that transformers refuses.
    """
    every = max(1, steps // spec.evaluations)
    save = spec.step_at(spec.checkpoint_every, tokens_per_example) if spec.checkpoint_every else every
    accumulation = int(spec.trainer.get("gradient_accumulation_steps", 1))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if spec.batch_size % (accumulation * processes):
        raise MeristemError(
            f"batch_size {spec.batch_size} is not a multiple of gradient_accumulation_steps {accumulation}"
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
        "eval_steps": every,
        "save_steps": save,
        "logging_steps": every,
        "seed": seed,
        "data_seed": seed,
        "ddp_find_unused_parameters": bool(spec.subnetwork),
        **_always(),
        **spec.trainer,
    }
    if from_first:
        settings["fsdp_config"] = {"cpu_ram_efficient_loading": True, **(spec.trainer.get("fsdp_config") or {})}
    if spec.trainer.get("use_liger_kernel") and not importlib.util.find_spec("liger_kernel"):
        raise MeristemError("trainer: use_liger_kernel needs the package liger-kernel, which is not installed here")
    try:
        arguments = NodeArguments(**settings)
    except (TypeError, ValueError) as error:
        raise MeristemError(f"trainer: {error}") from error
    asked = arguments.report_to or []
    if missing := sorted(set(asked) - set(get_available_reporting_integrations() if asked else asked)):
        raise MeristemError(f"trainer: report_to {missing[0]!r} needs its package, which is not installed here")
    return arguments


def _always() -> dict[str, Any]:
    """Arguments that no recipe changes, except those that `trainer` may set."""
    return {
        "adam_beta2": ADAM_BETA2,
        "eval_strategy": "steps",
        "eval_on_start": True,
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "train_sampling_strategy": "sequential",
    }


def _schedule(spec: TrainSpec, steps: int) -> dict[str, Any]:
    """The learning rate over the run, as arguments of the Trainer."""
    if spec.schedule != "wsd":
        return {"lr_scheduler_type": spec.schedule, "warmup_steps": spec.warmup}
    warmup = math.ceil(spec.warmup * steps)
    decay = min(round(spec.decay_share * steps), steps - warmup)
    if not decay:
        return {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": spec.warmup}
    own = {"num_decay_steps": decay, "decay_type": spec.decay_shape or "1-sqrt"}
    return {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": warmup, "lr_scheduler_kwargs": own}
