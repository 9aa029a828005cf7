"""Predict one text from another with an encoder-decoder. In classification, the target is the name of the
class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from meristem.data import PaddedPairs, open_pairs
from meristem.data.encoding import IGNORED
from meristem.errors import MeristemError
from meristem.recipes.specs.data_specs import PairSpec
from meristem.recipes.tasks.task import Split, Task, check_some, check_vocabulary, class_of, leave_tokenizer, network


class TextToText(Task):
    """Predict the target of an input text (Raffel et al. 2020, arXiv:1910.10683, section 2.4).
    `eval_accuracy` is the share of targets in which every token is right, given those before it.
    """

    def __init__(self, data: PairSpec) -> None:
        columns, lengths = (data.input_column, data.target_column), (data.sequence_length, data.target_length)
        pairs = open_pairs(data.source, data.tokenizer, columns, lengths, data.fraction, data.eval_examples)
        self.data, self.pairs, self.tokens_per_example = data, pairs, data.sequence_length
        self.description, self.fingerprint = pairs.description, pairs.fingerprint

    def new_model(self, entries: Mapping[str, Any], seed: int) -> nn.Module:
        from transformers import AutoModelForSeq2SeqLM

        defaults = {"vocab_size": self.pairs.encoding.vocab_size, "max_position_embeddings": self.data.sequence_length}
        return network(AutoModelForSeq2SeqLM, entries, {**defaults, "decoder_start_token_id": 0}, seed)

    def check(self, model: nn.Module, label: str) -> None:
        if not model.config.is_encoder_decoder:  # type: ignore[union-attr]
            raise MeristemError(
                f"{label}: text-to-text needs an encoder-decoder, and {type(model).__name__} is not one"
            )
        check_vocabulary(model, self.pairs.encoding.vocab_size, label)

    def training_set(self, count: int, seed: int, offset: int) -> PaddedPairs:
        return self._padded(self.pairs.train, count, seed, offset)

    def evaluation_set(self, split: Split = "eval") -> PaddedPairs:
        pairs = self.pairs.eval if split == "eval" else self.pairs.tune
        check_some(len(pairs), self.data.source, split)
        return self._padded(pairs, len(pairs))

    def _padded(self, pairs: Any, count: int, seed: int = 0, offset: int = 0) -> PaddedPairs:
        lengths = (self.data.sequence_length, self.pairs.target_length)
        return PaddedPairs(pairs, lengths, self.pairs.encoding.pad_token, count, seed, offset)

    def example(self) -> dict[str, Tensor]:
        return {name: tensor[None] for name, tensor in self.training_set(1, 0, 0)[0].items()}

    def trainer_options(self) -> dict[str, Any]:
        return {"compute_metrics": _accuracy, "preprocess_logits_for_metrics": lambda logits, _: class_of(logits)}

    def leave(self, directory: Any) -> None:
        leave_tokenizer(self.data.tokenizer, directory)


def _accuracy(prediction: Any) -> dict[str, float]:
    right = (prediction.predictions == prediction.label_ids) | (prediction.label_ids == IGNORED)
    return {"accuracy": float(np.mean(right.all(-1)))}
