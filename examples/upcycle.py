"""A dense model becomes a mixture of four experts, and is fine-tuned.

python examples/upcycle.py
"""

from __future__ import annotations

import argparse

import torch
from text import VOCABULARY, loss, sequences
from transformers import LlamaConfig, LlamaForCausalLM

import meristem as ms


def train(model, steps: int, learning_rate: float, seed: int) -> None:
    """`steps` steps of AdamW on 8 sequences each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for batch in sequences(8 * steps, seed=seed).split(8):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(steps: int = 100) -> dict[str, float]:
    """Losses on held-out text, and how far the experts of the first block have parted (0: alike)."""
    torch.manual_seed(0)
    held_out = sequences(16, seed=1)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    dense = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))
    train(dense, steps, 2e-3, seed=2)
    found = {"dense": loss(dense, held_out)}

    mixture = ms.grow(dense, ms.Upcycle(num_experts=4, experts_per_token=2))
    found["mixture"] = loss(mixture, held_out)
    mixture.config.output_router_logits = True  # the balancing loss, without which few experts get all tokens
    train(mixture, steps, 1e-3, seed=3)
    mixture.config.output_router_logits = False  # the loss below is the text's alone
    found["trained on"] = loss(mixture, held_out)
    first, second = mixture.model.layers[0].mlp.experts.down_proj[:2].detach()
    found["distance of experts"] = float((first - second).norm() / first.norm())
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    print(main(**vars(parser.parse_args())))
