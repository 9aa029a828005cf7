"""Grow in the middle of a training loop of your own; under torchrun, weights and optimizer are sharded by FSDP2.

python examples/grow_in_a_loop.py
torchrun --nproc-per-node 2 examples/grow_in_a_loop.py
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from text import VOCABULARY, loss, sequences
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

import meristem as ms

METHOD = ms.HyperCloning(width=2)


def shard(model):
    """Shard the blocks, then the rest."""
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model)


def train(model, optimizer, steps: int, seed: int) -> None:
    """`steps` steps of 8 sequences in all processes together."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for batch in sequences(8 * steps, seed=seed).split(8):
        own = batch[rank::world]
        model(input_ids=own, labels=own).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(steps: int = 100) -> dict[str, float]:
    """Losses on held-out text: of the small model, of the large one right after growing, and after training on."""
    sharded = "RANK" in os.environ
    if sharded:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.manual_seed(0)
    held_out = sequences(16, seed=1)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    small = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))
    if sharded:
        shard(small)
    optimizer = torch.optim.AdamW(small.parameters(), lr=2e-3)
    train(small, optimizer, steps, seed=2)
    losses = {"small": loss(small, held_out)}

    if sharded:
        large, optimizer = ms.grow_sharded(small, METHOD, shard, optimizer)
    else:
        growth = ms.Growth.of(small, METHOD)
        large, optimizer = growth.model, growth.grow_optimizer(optimizer)
    losses["grown"] = loss(large, held_out)
    train(large, optimizer, steps, seed=3)
    losses["trained on"] = loss(large, held_out)
    if sharded:
        dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    found = main(**vars(parser.parse_args()))
    if os.environ.get("RANK", "0") == "0":
        print(found)
