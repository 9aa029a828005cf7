"""Text for the examples: the sources of Python's own standard library, as bytes."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY = 256


def sequences(count: int, length: int = 64, part: int = 0, parts: int = 1, seed: int = 0) -> Tensor:
    """(count, length) bytes from random places in one `part` of `parts` of the library's files."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[part::parts][:40]
    text = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - length, (count, 1), generator=generator)
    return text[starts + torch.arange(length)]


def loss(model: torch.nn.Module, tokens: Tensor) -> float:
    """The mean loss of a causal language model, in nats for each byte."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        found = model(input_ids=tokens, labels=tokens).loss.item()
    model.train(was_training)
    return found
