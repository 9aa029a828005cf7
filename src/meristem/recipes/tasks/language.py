"""Tasks on text: predict the next token, or tokens that were masked or removed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from meristem.data import CorruptedSpans, Denoisers, MaskedSequences, Ordered, PrefixDenoisers, Sequences
from meristem.data.corruption import span_numbers
from meristem.data.denoisers import prefix_lm_length, sentinels_wanted
from meristem.errors import MeristemError
from meristem.recipes.sharding import is_first_process
from meristem.recipes.specs.data_specs import TextSpec
from meristem.recipes.tasks.apart import check_documents_apart, check_prefix_is_seen
from meristem.recipes.tasks.task import (
    Split,
    Task,
    check_positions,
    check_vocabulary,
    leave_tokenizer,
    network,
    padding_of_positions,
)
from meristem.recipes.tasks.texts import Texts

SPAN_LENGTH = 3.0


class Language(Task):
    """The common part of all tasks on text. `vocab_size` and `max_position_embeddings` of new networks follow
    the data.
    """

    head: str  # transformers' Auto class

    def __init__(self, data: TextSpec) -> None:
        self.data = data
        self.texts = Texts(data)
        self.corpus = self.texts.corpora[0]  # for its special tokens, which all have
        self.description, self.fingerprint = self.texts.description, self.texts.fingerprint
        self.tokens_per_example, self.vocab_size = data.sequence_length, self.corpus.vocab_size

    def asked(self, sequences: Sequences) -> Ordered:
        """Whole sequences, as inputs of the network and labels."""
        return sequences

    def new_model(self, entries: Mapping[str, Any], seed: int) -> nn.Module:
        import transformers

        return network(getattr(transformers, self.head), entries, self.defaults(), seed)

    def defaults(self) -> dict[str, Any]:
        """The config entries of new networks that follow the data."""
        return {"vocab_size": self.vocab_size, "max_position_embeddings": self.data.sequence_length}

    def check(self, model: nn.Module, label: str) -> None:
        check_vocabulary(model, self.vocab_size, label)

    def training_set(self, count: int, seed: int, offset: int) -> Ordered:
        return self.asked(self.texts.sequences("train", count, seed, offset))

    def evaluation_set(self, split: Split = "eval") -> Ordered:
        return self.asked(self.texts.sequences(split, self.data.eval_sequences))

    def example(self) -> dict[str, Tensor]:
        one = self.training_set(1, 0, 0)[0]
        one.pop("position_ids", None)  # they cost nothing, and a mask that depends on them cannot be counted by shapes
        return {name: tensor[None] for name, tensor in one.items()}

    def leave(self, directory: Path) -> None:
        leave_tokenizer(self.data.tokenizer, directory)


class _WithSentinels(Language):
    """Tasks whose removed spans are marked by sentinel tokens."""

    head = "AutoModelForSeq2SeqLM"
    sentinels: np.ndarray

    def use_sentinels(self, wanted: int) -> None:
        """Use the first `wanted` sentinels of the tokenizer.

        Raises:
            MeristemError: if the tokenizer has fewer, or no end token.
        """
        own = self.corpus
        if len(own.sentinels) < wanted or own.end_token is None:
            raise MeristemError(
                f"tokenizer {self.data.tokenizer!r} has {len(own.sentinels)} sentinels (<extra_id_0> and so on); {self.data.task} on "
                f"sequences of {self.data.sequence_length} tokens needs {wanted} and an end token (or `bytes`, with 100)"
            )
        self.sentinels = np.array(own.sentinels[:wanted])
        self.vocab_size = max(own.vocab_size, int(self.sentinels.max()) + 1)

    def defaults(self) -> dict[str, Any]:
        return {**super().defaults(), "decoder_start_token_id": 0}  # T5's, whose config names none


class CausalLanguage(Language):
    """Predict each token from those before it."""

    head = "AutoModelForCausalLM"

    def check(self, model: nn.Module, label: str) -> None:
        super().check(model, label)
        check_positions(model, self.data.sequence_length, label)
        if self.data.documents != "across" and is_first_process():
            check_documents_apart(model, label)

    def answers(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return super().answers(logits[:, :-1], labels[:, 1:])


class MaskedLanguage(Language):
    """Predict masked tokens from those around them (see `data.MaskedSequences`)."""

    head = "AutoModelForMaskedLM"

    def defaults(self) -> dict[str, Any]:
        """The padding token of a network may be the mask token here (RoBERTa's, with bytes), so it is set
        too.
        """
        return {**super().defaults(), "pad_token_id": self.corpus.pad_token}

    def check(self, model: nn.Module, label: str) -> None:
        super().check(model, label)
        check_positions(model, self.data.sequence_length, label)
        padding = padding_of_positions(model)
        if padding is not None and padding == self.corpus.mask_token:
            raise MeristemError(
                f"{label}: {type(model).__name__} uses token {self.corpus.mask_token} as padding, and tokenizer "
                f"{self.data.tokenizer!r} uses it as its mask; choose the network's own tokenizer"
            )

    def asked(self, sequences: Sequences) -> Ordered:
        if self.corpus.mask_token is None:
            raise MeristemError(
                f"tokenizer {self.data.tokenizer!r} has no mask token, and masked-lm needs one (or `bytes`)"
            )
        return MaskedSequences(sequences, self.corpus.mask_token, self.corpus.vocab_size, self.data.corrupted)


class SpanCorruption(_WithSentinels):
    """Predict removed spans with an encoder-decoder (see `data.CorruptedSpans`)."""

    def __init__(self, data: TextSpec) -> None:
        super().__init__(data)
        self.use_sentinels(span_numbers(data.sequence_length, data.corrupted, SPAN_LENGTH)[1])

    def asked(self, sequences: Sequences) -> Ordered:
        assert self.corpus.end_token is not None
        return CorruptedSpans(sequences, self.sentinels, self.corpus.end_token, self.data.corrupted, SPAN_LENGTH)


class MixtureOfDenoisers(_WithSentinels):
    """UL2's R, S and X denoisers for an encoder-decoder (see `data.Denoisers`)."""

    def __init__(self, data: TextSpec) -> None:
        super().__init__(data)
        self.use_sentinels(sentinels_wanted(data.sequence_length))

    def check(self, model: nn.Module, label: str) -> None:
        if not model.config.is_encoder_decoder:  # type: ignore[union-attr]
            raise MeristemError(
                f"{label}: this ul2 is for encoder-decoders, and {type(model).__name__} is not one; set prefix_lm: true under data"
            )
        super().check(model, label)

    def asked(self, sequences: Sequences) -> Ordered:
        assert self.corpus.end_token is not None
        return Denoisers(sequences, self.sentinels, self.corpus.end_token, self.corpus.pad_token)


class PrefixDenoising(_WithSentinels):
    """UL2's denoisers for a decoder that reads the input in both directions (see `data.PrefixDenoisers`)."""

    head = "AutoModelForCausalLM"

    def __init__(self, data: TextSpec) -> None:
        super().__init__(data)
        self.use_sentinels(sentinels_wanted(data.sequence_length))

    def defaults(self) -> dict[str, Any]:
        longer = {"max_position_embeddings": prefix_lm_length(self.data.sequence_length)}
        return {**Language.defaults(self), **longer}

    def check(self, model: nn.Module, label: str) -> None:
        if model.config.is_encoder_decoder:  # type: ignore[union-attr]
            raise MeristemError(
                f"{label}: this ul2 is for decoders, and {type(model).__name__} has an encoder; set prefix_lm: false under data"
            )
        super().check(model, label)
        if is_first_process():
            check_prefix_is_seen(model, label)

    def asked(self, sequences: Sequences) -> Ordered:
        assert self.corpus.end_token is not None
        return PrefixDenoisers(sequences, self.sentinels, self.corpus.end_token, self.corpus.pad_token)

    def answers(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return super().answers(logits[:, :-1], labels[:, 1:])


def causal_language_model(entries: Mapping[str, Any], vocab_size: int, sequence_length: int, seed: int) -> nn.Module:
    """A randomly initialised causal language model from config entries, which include its `model_type`.

    Raises:
        MeristemError: as in `network`.
    """
    from transformers import AutoModelForCausalLM

    defaults = {"vocab_size": vocab_size, "max_position_embeddings": sequence_length}
    return network(AutoModelForCausalLM, entries, defaults, seed)


def example_tokens(sequence_length: int, vocab_size: int) -> dict[str, Tensor]:
    """One sequence of tokens (1, sequence_length) with its labels."""
    tokens = torch.arange(sequence_length)[None] % vocab_size
    return {"input_ids": tokens, "labels": tokens}
