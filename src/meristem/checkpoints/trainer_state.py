"""Grow a checkpoint of the Trainer of transformers in mid-run. The moments of the optimizer grow, and
everything else stays.

The Trainer stores the state of its optimizer by number: first parameters that decay, then the others, each in
the order of `named_parameters`. Here the numbers become names, the state grows, and the names become the
numbers of the large network. Scheduler, random state and trainer state are copied unchanged.
`Trainer(...).train(resume_from_checkpoint=OUT)` therefore continues at the same step, with the same learning
rate, on the next batch.

No optimizer.pt is in memory as a whole: the old one is mapped. The new one is laid out first, and filled
tensor by tensor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meristem.checkpoints.companions import leads_out
from meristem.checkpoints.distributed_tensors import INDEX
from meristem.checkpoints.shards import check_space
from meristem.checkpoints.stateless import say_stateless
from meristem.errors import MeristemError, first_line
from meristem.growth import Growth
from meristem.growth.optimizers.optimizer import State, dtypes_of, grow_state
from meristem.growth.optimizers.optimizer_families import MISSED, Family, stored_family

KEPT = ("scheduler.pt", "rng_state*.pth", "trainer_state.json", "training_args.bin", "scaler.pt")


OTHER_OPTIMIZERS = ("optimizer.bin", "optimizer_*", "optimizer.safetensors", "pytorch_model_fsdp*", "global_step*")


def is_trainer_checkpoint(source: Path, drop: Sequence[str] = ()) -> bool:
    """Whether a directory is a checkpoint that the Trainer can resume, with an optimizer that can grow.

    Raises:
        MeristemError: if its optimizer is in shards, unless `drop` has a pattern for it, and if no Trainer
            can resume from its trainer_state.json.
    """
    if not (source / "trainer_state.json").is_file():
        return False
    _check_progress(source / "trainer_state.json")
    sharded = sorted(path.name for pattern in OTHER_OPTIMIZERS for path in source.glob(pattern))
    sharded = [
        name for name in sharded if name != "optimizer_0" or not (source / name / INDEX).is_file()
    ]  # that one grows
    lost = [name for name in sharded if not any(fnmatch(name, pattern) for pattern in drop)]
    if lost:
        raise MeristemError(
            f"{source} is a Trainer's checkpoint whose optimizer is in {lost[0]}, which cannot grow: save it whole "
            f"(optimizer.pt; for FSDP with a FULL_STATE_DICT), or pass --drop {lost[0]!r} to grow the weights alone"
        )
    return (source / "optimizer.pt").is_file() and not any(fnmatch("optimizer.pt", pattern) for pattern in drop)


def _check_progress(file: Path) -> None:
    """Raises MeristemError for a trainer_state.json whose entries no Trainer writes."""
    from transformers import TrainerState as Progress

    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        Progress(**said)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise MeristemError(
            f"{file} is not what a Trainer writes ({first_line(error)}), so training cannot resume from it; remove it to grow the "
            "weights alone"
        ) from error


@dataclass(frozen=True)
class TrainerState:
    """What a Trainer stored next to the weights: the state of the optimizer by parameter name, its groups,
    and its directory.
    """

    directory: Path
    state: State
    groups: list[dict[str, Any]]
    family: Family


def read_trainer_state(directory: Path, small: nn.Module) -> TrainerState:
    """The state of a checkpoint whose model is `small`. Read it before anything is grown or written.

    Args:
        directory: the directory of the Trainer's checkpoint. Its optimizer.pt is read with
            `weights_only=True`, which runs no code.
        small: the model of the checkpoint.

    Raises:
        MeristemError: if the groups of the optimizer are not the two that the Trainer makes, or if its state
            cannot grow.
    """
    saved = _read_optimizer(directory / "optimizer.pt")
    names = _grouped_names(small)
    counts = [len(group["params"]) for group in saved["param_groups"]]
    if counts != [len(group) for group in names]:
        raise MeristemError(
            f"{directory / 'optimizer.pt'} holds parameter groups of {counts} tensors; a Trainer of this model makes groups of "
            f"{[len(group) for group in names]}. Grow the weights alone, from a copy without optimizer.pt"
        )
    state: dict[str, Mapping[str, Tensor]] = {}
    for group, group_names in zip(saved["param_groups"], names, strict=True):
        for number, name in zip(group["params"], group_names, strict=True):
            if number in saved["state"]:
                state[name] = {key: torch.as_tensor(value) for key, value in saved["state"][number].items()}
    family = stored_family(state)
    _check_moments(directory / "optimizer.pt", state, family, small)
    say_stateless(directory / "optimizer.pt", (name for group in names for name in group), state)
    return TrainerState(directory, state, saved["param_groups"], family)


def _check_moments(file: Path, state: Mapping[str, Mapping[str, Tensor]], family: Family, small: nn.Module) -> None:
    """Raises MeristemError for moments that have other shapes than their weights, or are not finite."""
    shapes = {name: parameter.shape for name, parameter in small.named_parameters()}
    advice = "grow the weights alone, from a copy without optimizer.pt"
    for name, entries in state.items():
        for key, value in entries.items():
            wanted = family.shape_of(key, shapes[name])
            if key != MISSED and tuple(value.shape) != wanted:
                raise MeristemError(
                    f"{file}: {key} of {name} has shape {tuple(value.shape)} in place of {wanted}; {advice}"
                )
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise MeristemError(f"{file}: {key} of {name} is not finite (NaN or infinite); {advice}")


def grow_trainer_state(saved: TrainerState, growth: Growth, out: Path) -> None:
    """Write optimizer.pt for the grown model into `out`, and copy the files that growth does not change."""
    state = saved.state
    for plan in growth.plans:
        state = dict(grow_state(plan, state, saved.family))
    _write_optimizer(out / "optimizer.pt", state, saved.groups, growth.model, saved.family)
    keep_beside(saved.directory, out)


def keep_beside(directory: Path, out: Path) -> None:
    """Copy the files of a Trainer's checkpoint that growth does not change. Raises OSError."""
    for pattern in KEPT:
        for file in directory.glob(pattern):
            if file.is_file() and not leads_out(file, directory):
                shutil.copyfile(file, out / file.name)


def _read_optimizer(file: Path) -> Any:
    """{"state": {number: {name: tensor}}, "param_groups": [{"params": numbers, ...}]}, with mapped tensors.
    Raises MeristemError.
    """
    try:
        saved = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        groups = [list(group["params"]) for group in saved["param_groups"]]
        fits = all(isinstance(parts, dict) for parts in saved["state"].values()) and bool(groups)
    except Exception as error:
        raise MeristemError(
            f"{file} is not an optimizer's state that can be read without running its code; pass --drop optimizer.pt to grow the "
            "weights alone"
        ) from error
    if not fits:
        raise MeristemError(f"{file} holds no optimizer's state; pass --drop optimizer.pt to grow the weights alone")
    return saved


def _grouped_names(model: nn.Module) -> list[list[str]]:
    """The names of the parameters in the two groups of the Trainer."""
    from transformers import Trainer

    decaying = set(Trainer.get_decay_parameter_names(None, model))  # pyright: ignore[reportArgumentType]: uses no self
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [[n for n in names if n in decaying], [n for n in names if n not in decaying]]


def _write_optimizer(file: Path, state: State, groups: list[dict[str, Any]], model: nn.Module, family: Family) -> None:
    """Write what torch.save would write. It is laid out with tensors that have no memory, then filled one by
    one.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    names = _grouped_names(model)
    numbers = {name: number for number, name in enumerate(name for group in names for name in group)}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    with FakeTensorMode():
        entries = {
            numbers[name]: {
                key: torch.empty(family.shape_of(key, shapes[name]), dtype=dtype)
                for key, dtype in dtypes_of(parts).items()
            }
            for name, parts in state.items()
        }
    check_space(file.parent, sum(e.numel() * e.element_size() for parts in entries.values() for e in parts.values()))
    numbered = [
        {**group, "params": [numbers[name] for name in group_names]}
        for group, group_names in zip(groups, names, strict=True)
    ]
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"state": entries, "param_groups": numbered}, file)
    with FakeTensorMode():
        laid_out = torch.load(file, weights_only=True)["state"]
    with open(file, "r+b") as stream:
        for name, parts in state.items():
            for key in parts:
                stream.seek(laid_out[numbers[name]][key].untyped_storage()._checkpoint_offset)
                stream.write(memoryview(parts[key].contiguous().flatten().view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
