"""Grow a checkpoint in the middle of a run of transformers' Trainer, and go on.

    python examples/grow_in_trainer.py --out run
    python examples/grow_in_trainer.py --out run --source HuggingFaceTB/SmolLM2-135M

SOURCE may be any causal language model with at least 256 tokens: the text is bytes, which is enough to see that it works.
The small model trains for `--steps`, is grown to twice its width with its optimizer, and the large one trains for as many.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from text import VOCABULARY, loss, sequences
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import meristem as ms
from meristem.cli.main import app


def train(model, out: Path, steps: int, resume: Path | None = None):
    """Train for `steps` steps in all; a checkpoint is left at the end."""
    arguments = TrainingArguments(
        str(out),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        save_steps=steps,
        report_to=[],
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in sequences(8 * steps)]
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[ms.MissedStepsCallback()])
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer.model


def main(out: Path, source: str | None, steps: int) -> dict[str, float]:
    """Losses on held-out text: of the small model, of the large one right after growing, and after training on."""
    torch.manual_seed(0)
    held_out = sequences(16, seed=1)
    if source:
        small = AutoModelForCausalLM.from_pretrained(source)
    else:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        small = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))
    losses = {"small": loss(train(small, out / "small", steps), held_out)}

    checkpoint, grown = out / "small" / f"checkpoint-{steps}", out / "large" / f"checkpoint-{steps}"
    app(["grow", str(checkpoint), str(grown), "--width", "2"], standalone_mode=False)

    large = AutoModelForCausalLM.from_pretrained(grown)
    losses["grown"] = loss(large, held_out)
    losses["trained on"] = loss(train(large, out / "large", 2 * steps, resume=grown), held_out)
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a directory that does not exist")
    parser.add_argument("--source", help="a model directory or hub name; by default a small model is made")
    parser.add_argument("--steps", type=int, default=100)
    print(main(**vars(parser.parse_args())))
