"""Two models, trained on different halves of the data, become one that is as wide as both.

python examples/fuse_two.py
"""

from __future__ import annotations

import argparse

import torch
from text import VOCABULARY, loss, sequences
from transformers import LlamaConfig, LlamaForCausalLM

import meristem as ms


def train(model, optimizer, steps: int, seed: int, part: int = 0, parts: int = 1) -> None:
    """`steps` steps on 8 sequences of one part of the data each."""
    for batch in sequences(8 * steps, seed=seed, part=part, parts=parts).split(8):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(steps: int = 100) -> dict[str, float]:
    """Losses on held-out text: of the parents, of the fused model, and of it trained on."""
    held_out = sequences(16, seed=1)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    parents, optimizers = [], []
    for part in range(2):
        torch.manual_seed(part)
        parents.append(LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes)))
        optimizers.append(torch.optim.AdamW(parents[-1].parameters(), lr=2e-3))
        train(parents[-1], optimizers[-1], steps, seed=2, part=part, parts=2)
    losses = {f"parent {part}": loss(parent, held_out) for part, parent in enumerate(parents)}

    fusion = ms.fuse_with_certificate(parents, ms.DeepFusion(norm="equalised"))
    optimizer = ms.fuse_optimizer(fusion, optimizers, parents)
    losses["fused"] = loss(fusion.model, held_out)
    train(fusion.model, optimizer, steps, seed=3)
    losses["trained on"] = loss(fusion.model, held_out)
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    print(main(**vars(parser.parse_args())))
