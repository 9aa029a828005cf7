"""Keys of `trainer:` that would make a run's record wrong, and the keys to use instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from meristem.errors import MeristemError, nearest

_EVALUATIONS = "use `evaluations`: how often a node is evaluated; always at its start and end"
_CHECKPOINTS = "use `checkpoint_every`; the run resumes from its own checkpoints, and removes them when it is done"
_BUDGET = "use `tokens` or `examples`"
_ORDER = "the recipe sets the order of the data, so that a run can resume and later nodes read further data"
_SEEDS = "use `seeds` of the recipe, or `seed` of the node"
_LAST = "a node keeps the model of its last step"

RESERVED = {
    "output_dir": "the recipe names the directory of each node",
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
    "do_train": "a train node always trains",
    "do_predict": "a node is evaluated, see `evaluations`",
    "label_names": "evaluations measure the task's own labels",
    "push_to_hub": "a run uploads nothing; upload a node's `model/` with `ms.push_to_hub`",
}  # fmt: skip

REFUSED = {
    "label_smoothing_factor": "it changes the loss that evaluations measure",
    "deepspeed": "use `fsdp` to shard a network",
}

RANGES = {
    "gradient_accumulation_steps": (1, math.inf, "at least 1"),
    "adam_beta1": (0, 1, "at least 0 and below 1"),
    "adam_beta2": (0, 1, "at least 0 and below 1"),
    "adam_epsilon": (0, math.inf, "at least 0"),
    "max_grad_norm": (0, math.inf, "at least 0"),
    "eval_accumulation_steps": (1, math.inf, "at least 1"),
    "dataloader_num_workers": (0, math.inf, "at least 0"),
}  # lowest, and the first above

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")


def checked_keys(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, with values in the type of each field of TrainingArguments (YAML 1.1 reads `1e-8` as
    text).

    Raises:
        MeristemError: for a reserved key, with the one to use, for a key that TrainingArguments lacks, or for
            a value of another type or out of its range.
    """
    for key in trainer:
        if key in RESERVED:
            raise MeristemError(f"{key} is set by the recipe; {RESERVED[key]}")
        if key in REFUSED and trainer[key]:
            raise MeristemError(f"{key} cannot be set in a recipe: {REFUSED[key]}")
    if not trainer:
        return {}
    from transformers import TrainingArguments

    types = get_type_hints(TrainingArguments)
    free = TrainingArguments.__dataclass_fields__.keys() - RESERVED.keys() - REFUSED.keys()
    for key in trainer:
        if key not in TrainingArguments.__dataclass_fields__:
            raise MeristemError(f"unknown key {key!r}; {nearest(key, free)}")
    check_reports(trainer.get("report_to"))
    found = {key: _of_type(key, value, types[key]) for key, value in trainer.items()}
    for key, (lowest, above, words) in RANGES.items():
        value = found.get(key)
        if value is not None and not lowest <= value < above:
            raise MeristemError(f"{key} is {words}, found {value!r}")
    return found


def _of_type(key: str, value: Any, hint: Any) -> Any:
    """The value, converted if the field is a number or a boolean. Dictionaries are checked.

    Raises:
        MeristemError: if the value has another type.
    """
    kinds = set(get_args(hint) or (hint,))
    if kinds & {int, float, bool} and kinds <= {int, float, bool, NoneType}:
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}[(kinds - {NoneType}).pop()]
        try:
            return TypeAdapter(hint, config={"allow_inf_nan": False}).validate_python(value)
        except ValidationError:
            raise MeristemError(f"{key} is {wanted}, found {value!r}") from None
    if any(get_origin(kind) is dict or kind is dict for kind in kinds) and not isinstance(value, dict | str | NoneType):
        raise MeristemError(f"{key} takes `key: value` entries, found {value!r}")
    return value


def check_reports(report_to: Any) -> None:
    """Check the trackers.

    Raises:
        MeristemError: for a tracker that transformers does not know.
    """
    names = {report_to} if isinstance(report_to, str) else set(report_to or ())
    if names - {"none", "all", "tensorboard"}:
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as KNOWN

        for name in sorted(map(str, names - {"none", "all"} - set(KNOWN))):
            raise MeristemError(f"report_to: transformers knows no {name!r}; {nearest(name, KNOWN)}")


def features(trainer: Mapping[str, Any]) -> set[str]:
    """The features of the trainer's keys that matter for the combination of methods."""
    found = {
        "bf16": trainer.get("bf16") or trainer.get("fp16"),
        "checkpointing": any(trainer.get(key) for key in CHECKPOINTING),
        "accumulation": (trainer.get("gradient_accumulation_steps") or 1) > 1,
        "compile": trainer.get("torch_compile") or trainer.get("torch_compile_backend") or trainer.get("torch_compile_mode"),
        "fsdp": trainer.get("fsdp"),
    }  # fmt: skip
    return {name for name, on in found.items() if on}
