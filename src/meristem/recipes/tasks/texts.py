"""The texts of a recipe, one or several, cut into sequences."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from meristem.data import Corpus, Sequences, open_corpus
from meristem.data.order import BLOCK, shares_of
from meristem.data.packing import packed_documents
from meristem.data.windows import Consecutive, Weighted, Windows
from meristem.errors import MeristemError
from meristem.recipes.specs.data_specs import TextSpec
from meristem.recipes.tasks.task import check_some


class Texts:
    """All sources of a recipe's `data` section.

    Raises:
        MeristemError: if a source is missing, if vocabularies differ, or if document boundaries are needed
            and unknown.
    """

    def __init__(self, data: TextSpec) -> None:
        self.data = data
        self.corpora = [open_corpus(one.source, data.tokenizer, one.text_column, one.stream) for one in data.parts]
        sizes = {corpus.vocab_size for corpus in self.corpora}
        if len(sizes) > 1:
            said = ", ".join(f"{p.source} {c.vocab_size}" for p, c in zip(data.parts, self.corpora, strict=True))
            raise MeristemError(
                f"the sources have vocabularies of different sizes ({said}); give tokens of one tokenizer"
            )
        for part, corpus in zip(data.parts, self.corpora, strict=True):
            if data.documents != "across" and corpus.separator is None:
                raise MeristemError(
                    f"{part.source}: documents: {data.documents} needs a token that ends each document, and the tokenizer has none (for "
                    "tokens on disk, name it `end_token` in the JSON file next to them)"
                )

    @property
    def fingerprint(self) -> str:
        """A digest of all sources, or the source's own if there is only one."""
        if len(self.corpora) == 1:
            return self.corpora[0].fingerprint
        known = [(corpus.fingerprint, part.weight) for part, corpus in zip(self.data.parts, self.corpora, strict=True)]
        return hashlib.sha256(repr(known).encode()).hexdigest()

    @property
    def description(self) -> str:
        """A line for each source, with its share."""
        if len(self.corpora) == 1:
            return self.corpora[0].description
        shares = shares_of([part.weight for part in self.data.parts])
        return "\n".join(f"{s / BLOCK:.1%} {c.description}" for s, c in zip(shares, self.corpora, strict=True))

    def sequences(
        self, split: Literal["train", "tune", "eval"], count: int, seed: int = 0, offset: int = 0
    ) -> Sequences:
        """The next `count` sequences after the `offset` that earlier runs have read (see `data.order.Order`).
        From a held-out split, there are at most as many as it has.
        """
        own, windows = self.corpora[0], self.windows(split)
        more = {"separator": None if self.data.documents == "across" else own.separator, "pad_token": own.pad_token}
        more["vocab_size"] = own.vocab_size
        if split != "train":
            count = min(count, windows.once_through)
        return Sequences(windows, self.data.sequence_length, count, seed, offset, **more)

    def windows(self, split: Literal["train", "tune", "eval"]) -> Windows:
        """The pieces of this split.

        Raises:
            MeristemError: if a source has none.
        """
        parts = [
            self._cut(getattr(corpus, split), corpus, split, part.source)
            for corpus, part in zip(self.corpora, self.data.parts, strict=True)
        ]
        return parts[0] if len(parts) == 1 else Weighted(parts, [part.weight for part in self.data.parts])

    def _cut(self, tokens: np.ndarray, corpus: Corpus, split: str, source: str) -> Windows:
        length = self.data.sequence_length
        if split != "train":
            check_some(len(tokens) // length, source, split)  # type: ignore[arg-type]
        if self.data.documents != "whole":
            return Consecutive(tokens, length)
        assert corpus.separator is not None
        return packed_documents(tokens, length, corpus.separator, f"{corpus.fingerprint} {split}")
