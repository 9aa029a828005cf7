"""Sequences from which something is removed that the model has to predict: masked tokens (BERT), spans
(T5).
"""

from __future__ import annotations

import numpy as np
import torch

from meristem.data.encoding import IGNORED
from meristem.data.order import Ordered
from meristem.data.sequences import Sequences

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the others stay as they are


class MaskedSequences(Ordered):
    """Masked-language modelling (Devlin et al. 2018, arXiv:1810.04805, section 3.1). Some tokens of each
    sequence are chosen. 80 % of them become the mask and 10 % a random token. The loss covers all of them.

    Args:
        sequences: the complete sequences.
        mask_token: the mask token of the tokenizer.
        vocab_size: the size of its vocabulary.
        probability: the probability that a token is chosen.
    """

    def __init__(self, sequences: Sequences, mask_token: int, vocab_size: int, probability: float = 0.15) -> None:
        super().__init__(sequences.count, sequences.order)
        self.sequences, self.mask_token, self.vocab_size = sequences, mask_token, vocab_size
        self.chosen = max(1, round(probability * sequences.sequence_length))

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        whole = self.sequences[position]["input_ids"]
        draw = np.random.default_rng((self.order.seed, 2, position + self.order.offset))
        places = torch.from_numpy(draw.permutation(len(whole))[: self.chosen])
        kind = torch.from_numpy(draw.random(self.chosen))
        noise = torch.from_numpy(draw.integers(0, self.vocab_size, self.chosen))
        labels = torch.full_like(whole, IGNORED)
        labels[places] = whole[places]
        replaced = torch.where(kind < MASKED + RANDOM, noise, whole[places])
        inputs = whole.clone()
        inputs[places] = torch.where(kind < MASKED, self.mask_token, replaced)
        return {"input_ids": inputs, "labels": labels}


class CorruptedSpans(Ordered):
    """Span corruption (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4). Random spans are each replaced
    by a sentinel, and the target is the sentinels, each followed by its span. All examples have the same
    lengths, so nothing is padded.

    Args:
        sequences: the complete sequences.
        sentinels: token ids, one for each span.
        end_token: the token after inputs and targets.
        density: the share of the tokens that is removed.
        span_length: the mean length of a span.
    """

    def __init__(
        self,
        sequences: Sequences,
        sentinels: np.ndarray,
        end_token: int,
        density: float = 0.15,
        span_length: float = 3.0,
    ) -> None:
        super().__init__(sequences.count, sequences.order)
        self.sequences, self.sentinels, self.end_token = sequences, sentinels, end_token
        self.noise, self.spans = span_numbers(sequences.sequence_length, density, span_length)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        tokens = self.sequences[position]["input_ids"].numpy()
        draw = np.random.default_rng((self.order.seed, 3, position + self.order.offset))
        parts = corrupted(tokens, self.noise, self.spans, self.sentinels, self.end_token, draw)
        return dict(zip(("input_ids", "labels"), map(torch.from_numpy, parts), strict=True))


def corrupted(
    tokens: np.ndarray, noise: int, spans: int, sentinels: np.ndarray, end_token: int, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and target after `noise` tokens in `spans` random spans are removed from a sequence."""
    kept = _segments(len(tokens) - noise, spans, draw)
    taken = _segments(noise, spans, draw)
    cuts = np.cumsum(np.stack([kept, taken], axis=1).ravel())[:-1]
    pieces = np.split(tokens, cuts)  # kept, taken, kept, taken, ...
    inputs, target = [], []
    for span, sentinel in enumerate(sentinels[:spans]):
        inputs += [pieces[2 * span], [sentinel]]
        target += [[sentinel], pieces[2 * span + 1]]
    whole = (np.concatenate([*part, [end_token]]).astype(np.int64) for part in (inputs, target))
    inputs, target = whole
    return inputs, target


def span_numbers(sequence_length: int, density: float, span_length: float) -> tuple[int, int]:
    """How many tokens of a sequence are removed, and in how many spans."""
    noise = min(max(1, round(sequence_length * density)), sequence_length - 1)
    return noise, max(1, min(round(noise / span_length), noise, sequence_length - noise))


def _segments(total: int, count: int, draw: np.random.Generator) -> np.ndarray:
    """Lengths of at least one that sum to `total`. All such lists are equally likely."""
    cuts = np.sort(draw.permutation(total - 1)[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
