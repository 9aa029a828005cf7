"""One process of test_sharded.py: three steps small, growth, three steps large; rank 0 writes the losses."""

import sys
from pathlib import Path

import pico
import torch
import torch.distributed as dist
from processes import leave
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import meristem as ms


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> str:
    rank, world = dist.get_rank(), dist.get_world_size()
    batch = torch.randint(3, 67, (4, 12), generator=torch.Generator().manual_seed(number))
    mine = batch[rank * 4 // world : (rank + 1) * 4 // world]
    loss = model(input_ids=mine, labels=mine).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return f"{float(mean) / world:.8f}"


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
    losses = [step(model, optimizer, number) for number in range(3)]
    if sharded:
        big, grown = ms.grow_sharded(model, method, shard, optimizer)
    else:
        big = ms.grow(model, method)
        grown = ms.grow_optimizer(optimizer, model, big, method)
    losses += [step(big, grown, number) for number in range(3, 6)]
    leave(losses, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
