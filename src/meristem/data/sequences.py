"""Training sequences of fixed length from a corpus."""

from __future__ import annotations

import numpy as np
import torch

from meristem.data.encoding import IGNORED, padded
from meristem.data.order import Ordered
from meristem.data.token_files import check_range
from meristem.data.windows import Consecutive, Windows


class Sequences(Ordered):
    """Pieces of a corpus, shuffled. If it is longer than the data, it starts again in a new order.

    Args:
        windows: the pieces, or a 1-D array that is cut into consecutive pieces.
        sequence_length: the number of tokens in each sequence.
        count: how many sequences this run reads.
        seed: the seed of the order (see `Order`).
        offset: how many examples earlier stages have read (see `Order`).
        separator: the token that ends a document, if each document has to be read by itself. `position_ids`
            then count from its start (so that transformers keeps attention within it), and its first token is
            not in the loss.
        pad_token: the token after pieces that are shorter than a sequence. It is not in the loss.
        vocab_size: every token has to be below it. Reading one that is not raises MeristemError.
    """

    def __init__(
        self,
        windows: Windows | np.ndarray,
        sequence_length: int,
        count: int,
        seed: int = 0,
        offset: int = 0,
        separator: int | None = None,
        pad_token: int = 0,
        vocab_size: int | None = None,
    ) -> None:
        self.windows = windows if isinstance(windows, Windows) else Consecutive(windows, sequence_length)
        super().__init__(count, self.windows.order(seed, offset))
        self.sequence_length, self.separator, self.pad_token = sequence_length, separator, pad_token
        self.vocab_size = vocab_size

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        tokens = self.windows.tokens(self.order.at(position))
        if self.vocab_size is not None:
            check_range(tokens, self.vocab_size, f"sequence {self.order.at(position)}")
        window = padded(tokens, self.sequence_length, self.pad_token)
        labels = window.clone()
        labels[len(tokens) :] = IGNORED
        if self.separator is None:
            labels[0] = IGNORED  # nothing comes before it; Trainer counts it for some models (GPT-2) unless it is told
            return {"input_ids": window, "labels": labels}
        positions = positions_in_documents(window, self.separator)
        labels[positions == 0] = IGNORED
        return {"input_ids": window, "labels": labels, "position_ids": positions}


def positions_in_documents(tokens: torch.Tensor, separator: int) -> torch.Tensor:
    """The position of each token (length,) in its document. The separator is the last token of its own
    document.
    """
    places = torch.arange(len(tokens))
    begins = torch.zeros_like(places)
    begins[1:] = torch.where(tokens[:-1] == separator, places[1:], 0)
    return places - torch.cummax(begins, 0).values
