"""Small recipes that the tests of this folder share."""

from __future__ import annotations

MODEL = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2}  # fmt: skip
TRAIN = {"model": MODEL, "tokens": 1280, "learning_rate": 3e-3, "batch_size": 4, "evaluations": 2}


def corpus(folder, lines=2000, name="text.txt"):
    """A text file, and the `data` section that reads it."""
    file = folder / name
    file.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(lines)))
    return {"source": str(file), "sequence_length": 32, "eval_sequences": 8}
