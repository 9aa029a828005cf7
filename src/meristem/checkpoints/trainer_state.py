"""Growing a checkpoint of transformers' Trainer in mid-run: the optimizer's moments follow, everything else stays.

The Trainer stores its optimizer state by number: parameters that decay first, then the others, each in the order of
`named_parameters`. Here the numbers become names, the state grows, and the names become the numbers of the large network.
Scheduler, random state and trainer state are copied as they are, so that `Trainer(...).train(resume_from_checkpoint=OUT)` goes
on at the same step, with the same learning rate, on the next batch.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meristem.errors import MeristemError
from meristem.growth.grow import Growth
from meristem.growth.optimizer import State, grow_state

KEPT = ("scheduler.pt", "rng_state*.pth", "trainer_state.json", "training_args.bin", "scaler.pt")


def is_trainer_checkpoint(source: str) -> bool:
    """Whether a directory is a checkpoint that the Trainer can resume."""
    return (Path(source) / "trainer_state.json").is_file() and (Path(source) / "optimizer.pt").is_file()


def grow_trainer_state(source: Path, small: nn.Module, growth: Growth, out: Path) -> None:
    """Write optimizer.pt for the grown model into `out`, and copy the files that growth does not touch.

    Args:
        source: the Trainer's checkpoint directory; its optimizer.pt is read with `weights_only=True`, which runs no code.
        small: the model of that checkpoint.

    Raises:
        MeristemError: if the optimizer's groups are not the two that the Trainer makes, or its state cannot grow.
    """
    saved = torch.load(source / "optimizer.pt", weights_only=True, map_location="cpu")
    names = _grouped_names(small)
    counts = [len(group["params"]) for group in saved["param_groups"]]
    if counts != [len(group) for group in names]:
        raise MeristemError(
            f"{source / 'optimizer.pt'} holds parameter groups of {counts} tensors; a Trainer of this model makes groups of "
            f"{[len(group) for group in names]}. Grow the weights alone, from a copy without optimizer.pt"
        )
    state: State = {}
    for group, group_names in zip(saved["param_groups"], names, strict=True):
        for number, name in zip(group["params"], group_names, strict=True):
            if number in saved["state"]:
                state[name] = {key: torch.as_tensor(value) for key, value in saved["state"][number].items()}
    for plan in growth.plans:
        state = grow_state(plan, state)
    torch.save(_numbered(state, saved["param_groups"], _grouped_names(growth.model)), out / "optimizer.pt")
    for pattern in KEPT:
        for file in source.glob(pattern):
            shutil.copyfile(file, out / file.name)


def _grouped_names(model: nn.Module) -> list[list[str]]:
    """Parameter names in the Trainer's two groups."""
    from transformers import Trainer

    decaying = set(Trainer.get_decay_parameter_names(None, model))  # pyright: ignore[reportArgumentType]: uses no self
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [[n for n in names if n in decaying], [n for n in names if n not in decaying]]


def _numbered(state: State, groups: list[dict[str, Any]], names: list[list[str]]) -> dict[str, Any]:
    numbers = {name: number for number, name in enumerate(name for group in names for name in group)}
    return {
        "state": {numbers[name]: entries for name, entries in state.items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group_names]}
            for group, group_names in zip(groups, names, strict=True)
        ],
    }
