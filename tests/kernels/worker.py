"""One process of test_majority_callback.py: six steps of Majority Kernels under DDP; rank 0 writes the losses."""

import sys
from pathlib import Path

import pico
import torch
import torch.distributed as dist
from processes import leave, train
from torch.nn.parallel import DistributedDataParallel

import meristem as ms


def main(traffic: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    many = ms.majority(pico.build("llama"), kernels=3, data_parallel=traffic == "mixed").train()
    model = DistributedDataParallel(many)

    def loss_of(step: int, batch: torch.Tensor) -> torch.Tensor:
        ms.mix_kernels(many, step)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        return loss

    leave(train(model, loss_of, 6), folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
