"""The data for methods that choose by data: `--inputs FILE`, or `--data SOURCE` in the model's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meristem.errors import MeristemError

TOGETHER = 8  # examples in a batch


@dataclass(frozen=True)
class Looked:
    """The data for a method that chooses by data.

    Attributes:
        data: a text source, as in recipes (`data.open_corpus`).
        inputs: a file of named tensors (`inputs.read_inputs`), instead of `data`.
        tokenizer: a name or directory. By default it is the tokenizer in SRC.
        examples: the number of sequences of the training split that are used.
        sequence_length: the number of tokens in each of them.
    """

    data: str | None = None
    inputs: Path | None = None
    tokenizer: str | None = None
    examples: int = 128
    sequence_length: int = 256

    def check(self) -> None:
        """Check the options.

        Raises:
            MeristemError: if there are two sources or none, or if a count is not a positive whole number.
        """
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
        """Batches of keyword arguments of `forward`. Batches of text include labels.

        Raises:
            MeristemError: if the data or the tokenizer do not exist, or do not fit the model.
        """
        if self.inputs is not None:
            from meristem.cli.inputs import read_inputs

            return [read_inputs(self.inputs)]
        from torch.utils.data import DataLoader

        from meristem.cli.inputs import own_tokenizer
        from meristem.data import Sequences, open_corpus

        assert self.data is not None
        text = model.config.get_text_config()
        length = min(self.sequence_length, getattr(text, "max_position_embeddings", None) or self.sequence_length)
        corpus = open_corpus(self.data, self.tokenizer or own_tokenizer(source))
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
        """The entry about the data in `meristem.json`."""
        shapes = {name: list(tensor.shape[1:]) for name, tensor in batches[0].items()}
        examples = sum(len(next(iter(batch.values()))) for batch in batches)
        return {"data": self.data or str(self.inputs), "examples": examples, "shapes": shapes}


def wants_data(methods: Sequence[Any]) -> bool:
    """Whether one of the methods chooses by what the network computes on data."""
    from meristem.growth import Prune

    return any(isinstance(method, Prune) for method in methods)


def with_batches(methods: Sequence[Any], batches: Sequence[dict[str, Any]]) -> list[Any]:
    """The methods, with the batches for those that choose by data."""
    from meristem.growth import Prune

    return [replace(method, batches=batches) if isinstance(method, Prune) else method for method in methods]
