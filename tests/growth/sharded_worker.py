"""One process of test_sharded.py: three steps small, growth, three steps large; rank 0 writes the losses."""

import sys
from pathlib import Path

import pico
import torch
import torch.distributed as dist
from processes import language_model_loss, leave, train_step
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import meristem as ms


def main(mode: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def shard(network: torch.nn.Module) -> None:
        for block in network.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)

    family, _, growth = mode.partition(":")
    method = {"width": ms.HyperCloning(width=2, noise=0.1), "both": [ms.HyperCloning(width=2), ms.Stacking(depth=2)]}[
        growth
    ]
    model = pico.build(family, tie_word_embeddings=growth == "both").train()
    sharded = dist.get_world_size() > 1
    if sharded:
        shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [train_step(optimizer, language_model_loss(model), number) for number in range(3)]
    if sharded:
        big, grown = ms.grow_sharded(model, method, shard, optimizer)
    else:
        big = ms.grow(model, method)
        grown = ms.grow_optimizer(optimizer, model, big, method)
    losses += [train_step(grown, language_model_loss(big), number) for number in range(3, 6)]
    leave(losses, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
