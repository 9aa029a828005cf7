"""Open a model into memory, from a directory or a hub name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from meristem.checkpoints.open_streamed import read_lazily
from meristem.checkpoints.source import Source, find_source


def open_model(source: str | Source, trust_remote_code: bool = False, drop: Sequence[str] = ()) -> Any:
    """Open a model with its own weights, in the dtypes in which they are stored, in evaluation mode.

    Args:
        source: a directory, a hub name, or what `find_source` made from either.
        trust_remote_code: run code that comes with the checkpoint. Without it, nothing from the checkpoint is
            run.
        drop: names of tensors in the files that may be left out. `*` matches anything.

    Raises:
        MeristemError: if it is not a complete model: no config, no safetensors files, a truncated file, or
            weights that are missing, have other shapes or do not belong to the architecture.
    """
    model, weights = read_lazily(source, trust_remote_code, drop)
    made: dict[int, nn.Parameter] = {}
    for name, held in model.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = weights[name].clone()
            continue
        if id(held) not in made:  # tied names share the parameter
            tensor = weights[name].contiguous()
            made[id(held)] = nn.Parameter(tensor, requires_grad=held.requires_grad and tensor.is_floating_point())
        owner._parameters[leaf] = made[id(held)]
    return model.eval()


def local_directory(source: str) -> Path:
    """The directory itself, or for a hub name the directory in the hub's cache, which is filled if necessary.

    Raises:
        MeristemError: as `find_source`.
    """
    return find_source(source).path
