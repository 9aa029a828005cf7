"""What torch.distributed.checkpoint leaves behind on loading: how many of Adam's steps fresh entries have missed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from meristem.checkpoints.distributed_tensors import INDEX, DistributedTensors
from meristem.errors import MeristemError
from meristem.growth.block_steps import MISSED, count_blocks_apart
from meristem.growth.dtensors import as_part


def load_missed_steps(optimizer: Optimizer, model: nn.Module, directory: str | Path) -> None:
    """Give an optimizer what a grown checkpoint says about entries that were never trained, after its state has been loaded.

    `dcp.load` fills the entries that an optimizer has already, and no Adam knows missed steps. Without them the first step
    of fresh entries is (1 - beta1) / sqrt(1 - beta2) learning rates long, 3.2 with the usual betas, instead of one. To be
    called by all processes alike; where the checkpoint names none, nothing changes.

    Args:
        optimizer: Adam or AdamW of the grown network, its state loaded.
        model: the grown network, sharded or not.
        directory: what `meristem grow` wrote, a directory of torch.distributed.checkpoint.

    Raises:
        MeristemError: if the directory is none, or is another network's.
    """
    if not (Path(directory) / INDEX).is_file():
        raise MeristemError(f"{directory} is not a directory of torch.distributed.checkpoint: it has no {INDEX}")
    reader = DistributedTensors(Path(directory))
    parameters = dict(model.named_parameters())
    for key, path in reader.paths.items():
        if path[-1] != MISSED:
            continue
        parameter = parameters.get(str(path[-2]))
        missed = reader.tensor(key)
        if parameter is None or parameter.shape != missed.shape:
            raise MeristemError(
                f"{directory} records missed steps for {path[-2]} {tuple(missed.shape)}, and the model has no such tensor"
            )
        if parameter in optimizer.state:
            part = as_part(missed, parameter.detach())
            optimizer.state[parameter][MISSED] = part.to(parameter.device, torch.float32)
    count_blocks_apart(optimizer)
