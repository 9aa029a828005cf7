"""What a network is watched on: `--inputs FILE`, or `--data SOURCE` in the model's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meristem.errors import MeristemError

TOGETHER = 8  # examples in a batch


@dataclass(frozen=True)
class Looked:
    """Which data a method that chooses by data is to look at.

    Attributes:
        data: a text source as recipes know them (`data.open_corpus`).
        inputs: instead, a file of named tensors (`inputs.read_inputs`).
        tokenizer: a name or directory; by default what lies in SRC.
        examples, sequence_length: how many sequences of the training split, and of how many tokens.
    """

    data: str | None = None
    inputs: Path | None = None
    tokenizer: str | None = None
    examples: int = 128
    sequence_length: int = 256

    def check(self) -> None:
        """Raises MeristemError for two sources, none, or counts that are no counts."""
        if (self.data is None) == (self.inputs is None):
            raise MeristemError(
                "--method prune chooses by what the network does on data: give --data (text, such as a file) or --inputs (a file of "
                "named tensors), and not both"
            )
        if self.data is None and self.tokenizer is not None:
            raise MeristemError("--tokenizer is for --data; --inputs holds tokens already")
        for name, count in (("--examples", self.examples), ("--sequence-length", self.sequence_length)):
            if count < 1 + (name == "--sequence-length"):
                raise MeristemError(f"{name} must be at least {1 + (name == '--sequence-length')}, got {count}")

    def batches(self, source: Path, model: Any) -> list[dict[str, Any]]:
        """Keyword arguments of forward, with labels where they are text.

        Raises:
            MeristemError: if data or tokenizer are not there, or do not fit the model.
        """
        if self.inputs is not None:
            from meristem.cli.inputs import read_inputs

            return [read_inputs(self.inputs)]
        from torch.utils.data import DataLoader

        from meristem.data import Sequences, open_corpus

        assert self.data is not None
        text = model.config.get_text_config()
        length = min(self.sequence_length, getattr(text, "max_position_embeddings", None) or self.sequence_length)
        corpus = open_corpus(self.data, self.tokenizer or _own_tokenizer(source))
        highest = max((int(split.max()) for split in (corpus.train, corpus.eval) if len(split)), default=0)
        if highest >= text.vocab_size:
            raise MeristemError(
                f"{self.data} has token {highest}, and the model knows {text.vocab_size}: this is another tokenizer's; name the "
                "model's own with --tokenizer"
            )
        if len(corpus.train) < length:
            raise MeristemError(
                f"{self.data} has {len(corpus.train)} training tokens, fewer than one sequence of {length}"
            )
        found = min(self.examples, len(corpus.train) // length)
        return list(DataLoader(Sequences(corpus.train, length, found), batch_size=TOGETHER))  # type: ignore[arg-type]

    def record(self, batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What `meristem.json` says of it."""
        shapes = {name: list(tensor.shape[1:]) for name, tensor in batches[0].items()}
        examples = sum(len(next(iter(batch.values()))) for batch in batches)
        return {"data": self.data or str(self.inputs), "examples": examples, "shapes": shapes}


def _own_tokenizer(source: Path) -> str:
    if any((source / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return str(source)
    raise MeristemError(f"{source} holds no tokenizer; name one with --tokenizer (bytes, or a Hugging Face tokenizer)")


def wants_data(methods: Sequence[Any]) -> bool:
    """Whether one of them chooses by what the network does on data."""
    from meristem.growth import Prune

    return any(isinstance(method, Prune) for method in methods)


def with_batches(methods: Sequence[Any], batches: Sequence[dict[str, Any]]) -> list[Any]:
    """The methods; those that choose by data know it."""
    from meristem.growth import Prune

    return [replace(method, batches=batches) if isinstance(method, Prune) else method for method in methods]
