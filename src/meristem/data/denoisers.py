"""UL2's mixture of denoisers (Tay et al. 2022, arXiv:2205.05131, table 1): short spans, long or many spans,
and the end of a text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from meristem.data.corruption import corrupted, span_numbers
from meristem.data.encoding import IGNORED, padded
from meristem.data.order import Ordered
from meristem.data.sequences import Sequences


@dataclass(frozen=True)
class Denoiser:
    """A kind ("R", "S", "X"), the share of tokens that is removed, and the mean length of a span (None: one
    span, at the end).
    """

    kind: str
    density: float
    span_length: float | None

    def numbers(self, sequence_length: int) -> tuple[int, int]:
        """How many tokens of a sequence are removed, and in how many spans."""
        return span_numbers(sequence_length, self.density, self.span_length or sequence_length)


# Each as likely as the others. S takes the last quarter, the mean of what the paper draws.
MIXTURE = (
    Denoiser("R", 0.15, 3), Denoiser("R", 0.15, 8), Denoiser("S", 0.25, None), Denoiser("X", 0.5, 3), Denoiser("X", 0.5, 8),
    Denoiser("X", 0.15, 64), Denoiser("X", 0.5, 64),
)  # fmt: skip
KINDS = ("R", "S", "X")


def sentinels_wanted(sequence_length: int) -> int:
    """The number of sentinels: one for each span of the denoiser with the most spans, and one for each kind,
    with which the input begins.
    """
    return max(denoiser.numbers(sequence_length)[1] for denoiser in MIXTURE) + len(KINDS)


class Denoisers(Ordered):
    """Sequences from which one denoiser of the mixture, drawn by (seed, position), removes something. They
    are padded to the same lengths.

    Args:
        sequences: the complete sequences.
        sentinels: token ids, `sentinels_wanted` of them. The last three name the kind at the beginning of the
            input.
        end_token: the token after inputs and targets.
        pad_token: the token after inputs, which is not attended to. Targets are followed by `IGNORED`.
    """

    def __init__(self, sequences: Sequences, sentinels: np.ndarray, end_token: int, pad_token: int = 0) -> None:
        super().__init__(sequences.count, sequences.order)
        self.sequences, self.sentinels, self.end_token, self.pad_token = sequences, sentinels, end_token, pad_token
        length = sequences.sequence_length
        numbers = [denoiser.numbers(length) for denoiser in MIXTURE]
        self.lengths = (
            max(length - noise + spans + 2 for noise, spans in numbers),
            max(noise + spans + 1 for noise, spans in numbers),
        )

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        inputs, target = self.parts(position)
        return {
            "input_ids": padded(inputs, self.lengths[0], self.pad_token),
            "attention_mask": padded(np.ones_like(inputs), self.lengths[0], 0),
            "labels": padded(target, self.lengths[1], IGNORED),
        }

    def parts(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """The input, which begins with the kind of its denoiser, and the target. Both have an end token."""
        tokens = self.sequences[position]["input_ids"].numpy()
        draw = np.random.default_rng((self.order.seed, 4, position + self.order.offset))
        denoiser = MIXTURE[int(draw.integers(len(MIXTURE)))]
        noise, spans = denoiser.numbers(len(tokens))
        if denoiser.span_length is None:
            first, kept = self.sentinels[:1], len(tokens) - noise
            inputs, target = np.append(tokens[:kept], first), np.concatenate([first, tokens[kept:]])
            inputs, target = np.append(inputs, self.end_token), np.append(target, self.end_token)
        else:
            inputs, target = corrupted(tokens, noise, spans, self.sentinels, self.end_token, draw)
        kind = self.sentinels[-len(KINDS) :][KINDS.index(denoiser.kind)]
        return np.concatenate([[kind], inputs]), target


def prefix_lm_length(sequence_length: int) -> int:
    """The length of an input and its target, for the denoiser with the most tokens."""
    return sequence_length + 3 + 2 * max(denoiser.numbers(sequence_length)[1] for denoiser in MIXTURE)


class PrefixDenoisers(Denoisers):
    """The same for a decoder, as a prefix language model (UL2, section 3.1.1; Raffel et al. 2020, section
    3.2.1).

    The input is read in both directions. The target follows it, and only the target is in the loss.
    `attention_mask` (1, length, length) says which token attends to which.
    """

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        inputs, target = self.parts(position)
        length = prefix_lm_length(self.sequences.sequence_length)
        labels = np.concatenate([np.full_like(inputs, IGNORED), target])
        return {
            "input_ids": padded(np.concatenate([inputs, target]), length, self.pad_token),
            "attention_mask": prefix_mask(length, len(inputs)),
            "labels": padded(labels, length, IGNORED),
        }


def prefix_mask(length: int, prefix: int) -> torch.Tensor:
    """(1, length, length), true where the token of the row attends to that of the column: to those before it,
    to itself, and to the whole prefix.
    """
    places = torch.arange(length)
    return ((places[None] <= places[:, None]) | (places[None] < prefix))[None]
