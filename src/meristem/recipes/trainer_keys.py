"""Keys of `trainer:` that would break a run's account of itself, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meristem.errors import MeristemError, nearest

_EVALUATIONS = "use `evaluations`: how often a node is evaluated; always at its start and end"
_CHECKPOINTS = "use `checkpoint_every`; the run resumes from its own checkpoints, and removes them when it is done"
_BUDGET = "use `tokens` or `examples`"
_ORDER = "the order of the data is the recipe's, so that a run resumes and later nodes read on"
_SEEDS = "use `seeds` of the recipe, or `seed` of the node"
_LAST = "a node leaves the model it ends with"

RESERVED = {
    "output_dir": "a node's directory is the recipe's",
    "max_steps": _BUDGET,
    "num_train_epochs": _BUDGET,
    "per_device_train_batch_size": "use `batch_size`: of all processes and accumulated steps together",
    "auto_find_batch_size": "use `batch_size`, and `gradient_accumulation_steps` where it does not fit into memory",
    "learning_rate": "use `learning_rate` of the node",
    "lr_scheduler_type": "use `schedule`",
    "lr_scheduler_kwargs": "use `schedule`, `decay` and `decay_shape`",
    "warmup_steps": "use `warmup`, a share of the run",
    "warmup_ratio": "use `warmup`, a share of the run",
    "weight_decay": "use `weight_decay` of the node",
    **dict.fromkeys(("do_eval", "eval_strategy", "eval_steps", "eval_on_start", "eval_delay"), _EVALUATIONS),
    **dict.fromkeys(("batch_eval_metrics", "prediction_loss_only"), "every evaluation measures the task's own metrics"),
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit", "save_only_model"), _CHECKPOINTS),
    **dict.fromkeys(("enable_jit_checkpoint", "resume_from_checkpoint", "restore_callback_states_from_checkpoint"), _CHECKPOINTS),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _LAST),
    **dict.fromkeys(("seed", "data_seed"), _SEEDS),
    **dict.fromkeys(("ignore_data_skip", "train_sampling_strategy", "group_by_length", "length_column_name"), _ORDER),
    "dataloader_drop_last": "every batch is whole",
    "logging_nan_inf_filter": "a loss that is not a number ends the node",
    "ddp_find_unused_parameters": "it follows `subnetwork`",
    "remove_unused_columns": "the task's own columns are what the network reads",
    "do_train": "a train node trains",
    "do_predict": "a node is evaluated, see `evaluations`",
}  # fmt: skip

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")


def check_keys(trainer: Mapping[str, Any]) -> None:
    """Raises MeristemError for a key that is reserved, naming the one to use, or that TrainingArguments has not."""
    for key in trainer:
        if key in RESERVED:
            raise MeristemError(f"trainer: {key} is set by the recipe; {RESERVED[key]}")
    if trainer:
        from transformers import TrainingArguments

        known = TrainingArguments.__dataclass_fields__
        for key in trainer:
            if key not in known:
                raise MeristemError(f"trainer: unknown key {key!r}; {nearest(key, known)}")


def features(trainer: Mapping[str, Any]) -> set[str]:
    """What of the trainer's keys matters to how methods go together."""
    found = {
        "bf16": trainer.get("bf16") or trainer.get("fp16"),
        "checkpointing": any(trainer.get(key) for key in CHECKPOINTING),
        "accumulation": int(trainer.get("gradient_accumulation_steps") or 1) > 1,
        "compile": trainer.get("torch_compile") or trainer.get("torch_compile_backend") or trainer.get("torch_compile_mode"),
        "fsdp": trainer.get("fsdp"),
    }  # fmt: skip
    return {name for name, on in found.items() if on}
