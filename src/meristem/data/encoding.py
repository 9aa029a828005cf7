"""From text to tokens: bytes, or a Hugging Face tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from meristem.errors import MeristemError, first_line

if TYPE_CHECKING:
    import torch

SEPARATOR = 0  # between documents, and as padding; like the next two a byte that does not occur in text
MASK = 1  # for a masked byte
END = 2
IGNORED = -100  # the label of a token that is not asked for
SENTINELS = 100  # tokens that replace a span, after the 256 bytes


@dataclass(frozen=True)
class Encoding:
    """How text becomes tokens (1-D, int32), how many there are, and which token is between documents. It also
    holds the tokens for padding, for a masked token, for removed spans and for an end, if the tokenizer
    has them.
    """

    encode: Callable[[str], np.ndarray]
    encode_all: Callable[[list[str]], list[np.ndarray]]  # many texts, in parallel where the tokenizer can
    vocab_size: int
    separator: np.ndarray
    pad_token: int
    mask_token: int | None
    sentinels: tuple[int, ...]
    end_token: int | None
    fingerprint: str = "bytes"  # of exactly this tokenizer, whatever its name


def open_encoding(tokenizer: str) -> Encoding:
    """Open a tokenizer: "bytes" (256 tokens), or the name or directory of a Hugging Face tokenizer.

    Raises:
        MeristemError: if it does not exist.
    """
    if tokenizer == "bytes":
        sentinels = tuple(range(256, 256 + SENTINELS))
        between = np.array([SEPARATOR], dtype=np.int32)
        return Encoding(
            _bytes, lambda texts: [_bytes(text) for text in texts], 256, between, SEPARATOR, MASK, sentinels, END
        )
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    except Exception as error:
        raise MeristemError(f"tokenizer {tokenizer!r} cannot be loaded: {first_line(error)}") from error
    end, known = loaded.eos_token_id, loaded.get_vocab()
    spans = tuple(known[name] for name in (f"<extra_id_{i}>" for i in range(SENTINELS)) if name in known)
    separator = np.array([] if end is None else [end], dtype=np.int32)

    def encode(text: str) -> np.ndarray:
        return np.array(loaded.encode(text, add_special_tokens=False), dtype=np.int32)

    def encode_all(texts: list[str]) -> list[np.ndarray]:
        many = loaded(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [np.array(tokens, dtype=np.int32) for tokens in many]

    special = loaded.pad_token_id or 0, loaded.mask_token_id, spans, end
    return Encoding(encode, encode_all, len(loaded), separator, *special, _fingerprint(loaded))


def padded(tokens: np.ndarray, length: int, filling: int) -> torch.Tensor:
    """Tokens followed by `filling`: int64 of shape (length,)."""
    import torch

    whole = torch.full((length,), filling, dtype=torch.long)
    whole[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
    return whole


def _fingerprint(tokenizer: Any) -> str:
    """A fingerprint of what the tokenizer does: its rules, if it exposes them, its vocabulary and its special
    tokens.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if hasattr(backend, "to_str") else type(tokenizer).__name__
    said = [rules, sorted(tokenizer.get_vocab().items()), {k: str(v) for k, v in tokenizer.special_tokens_map.items()}]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
