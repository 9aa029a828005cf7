"""Texts: random token ids within the vocabulary, without the ids that have a special meaning for the
network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.inputs.interface import Group, Interface

SPECIAL = r".*_token_(id|ids|index)|.*_(idx|index)|(pad|image|video|audio)_(token|id)"
IDS = ("input_ids", "inputs")  # what ids are called


def texts(net: Interface) -> list[Group]:
    """The ids of a text, and those of the decoder's text if there is one. [] if the network reads none. The
    decoder of a classifier reads the same text, since its answer stands where that text ends.
    """
    groups: list[Group] = [{}]
    name = next((n for n in IDS if net.takes(n) and (n == "input_ids" or n == net.main)), None)
    if name and vocabulary(net):
        groups = [{name: token_ids(net, vocabulary(net))}]
    if not net.takes("decoder_input_ids"):
        return groups if groups[0] else []
    same = groups[0].get(name or "") if "SequenceClassification" in net.kind else None
    decoder = {"decoder_input_ids": decoder_ids(net) if same is None else same}
    both = [{**group, **decoder} for group in groups]
    return both + groups if getattr(net.config, "is_encoder_decoder", False) or not name else groups + both


def vocabulary(net: Interface) -> int:
    """How many ids the network reads: the rows of its embedding, or what its config says."""
    try:
        embedding = net.model.get_input_embeddings()  # type: ignore[operator]
        rows = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else 0
    except (NotImplementedError, AttributeError):
        rows = 0
    said = net.size(r"text|language|llm|thinker|decoder|encoder", "vocab_size", default=0)
    return min(rows, said) if rows and said else rows or said


def token_ids(net: Interface, vocab: int, length: int | None = None) -> Tensor:
    """(batch, length) ids, or (batch, 2 choices, length) for multiple choice. A text ends with its end
    token.
    """
    longest = net.size(r"text", "max_position_embeddings", "max_source_positions", default=net.length)
    length = length or net.length
    length = max(1, min(length, longest - 4)) if isinstance(longest, int) else length
    special = set(_special_ids(net.config))
    ordinary = torch.tensor([i for i in range(min(vocab, 4096)) if i not in special] or [*range(vocab)])
    shape = (net.batch, 2, length) if "MultipleChoice" in net.kind else (net.batch, length)
    ids = ordinary[net.randint(len(ordinary), *shape)]
    end = net.size(r"text", "eos_token_id")
    if isinstance(end, int) and 0 < end < vocab and length > 1:
        ids[..., -1] = end
    return ids


def decoder_ids(net: Interface) -> Tensor:
    """(batch, length) ids in the decoder's vocabulary. (batch x codebooks, length) for several codebooks."""
    part = r"decoder|text"
    vocab = net.size(part, "decoder_vocab_size", "vocab_size", default=vocabulary(net)) or 8
    longest = net.size(part, "max_target_positions", "max_position_embeddings", "max_length", default=net.length)
    books = net.size(r"^decoder", "num_codebooks", default=1)
    length = max(1, min(net.length // 2, longest - 4)) if isinstance(longest, int) else net.length // 2
    special = set(_special_ids(net.config))
    ordinary = torch.tensor([i for i in range(min(vocab, 4096)) if i not in special] or [*range(vocab)])
    return ordinary[net.randint(len(ordinary), net.batch * (books if isinstance(books, int) else 1), length)]


def takes_one_text(net: Interface) -> bool:
    """Whether it accepts only one row: a classifier that looks for the last token of each row that is not
    padding, and knows no padding token.
    """
    return (
        "SequenceClassification" in net.kind
        and net.size(r"text", "pad_token_id", default=-1) in (-1, None)
        and (getattr(net.config, "pad_token_id", None) is None)
    )


def _special_ids(config: Any) -> Iterator[int]:
    for name, value in vars(config).items():
        if hasattr(value, "model_type"):
            yield from _special_ids(value)
        elif re.fullmatch(SPECIAL, name):
            yield from (v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int))
