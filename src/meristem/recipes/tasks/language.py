"""Text, to be continued."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meristem.data import Sequences, open_corpus
from meristem.errors import MeristemError
from meristem.recipes.data_specs import TextSpec
from meristem.recipes.tasks.task import Task, network


class CausalLanguage(Task):
    """Each token from those before it. `vocab_size` and `max_position_embeddings` of new networks follow the data."""

    def __init__(self, data: TextSpec) -> None:
        self.data, self.corpus = data, open_corpus(data.source, data.tokenizer, data.text_column)
        self.description, self.fingerprint = self.corpus.description, self.corpus.fingerprint
        self.tokens_per_example = data.sequence_length

    def new_model(self, entries: Mapping[str, Any], seed: int) -> nn.Module:
        return causal_language_model(entries, self.corpus.vocab_size, self.data.sequence_length, seed)

    def check(self, model: nn.Module, label: str) -> None:
        vocab_size = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        if self.corpus.vocab_size > vocab_size:
            raise MeristemError(
                f"{label}: the data has {self.corpus.vocab_size} tokens, the model's vocabulary {vocab_size}"
            )

    def training_set(self, count: int, seed: int, offset: int) -> Sequences:
        return Sequences(self.corpus.train, self.data.sequence_length, count, seed, offset)

    def evaluation_set(self) -> Sequences:
        return Sequences(self.corpus.eval, self.data.sequence_length, self.data.eval_sequences)

    def example(self) -> dict[str, Tensor]:
        return example_tokens(self.data.sequence_length, self.corpus.vocab_size)

    def leave(self, directory: Path) -> None:
        if self.data.tokenizer != "bytes":
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(self.data.tokenizer).save_pretrained(directory)


def causal_language_model(entries: Mapping[str, Any], vocab_size: int, sequence_length: int, seed: int) -> nn.Module:
    """A randomly initialised causal language model from config entries with its `model_type`. Raises as `network`."""
    from transformers import AutoModelForCausalLM

    defaults = {"vocab_size": vocab_size, "max_position_embeddings": sequence_length}
    return network(AutoModelForCausalLM, entries, defaults, seed)


def example_tokens(sequence_length: int, vocab_size: int) -> dict[str, Tensor]:
    """One sequence of tokens (1, sequence_length) with its labels."""
    tokens = torch.arange(sequence_length)[None] % vocab_size
    return {"input_ids": tokens, "labels": tokens}
