"""Pairs of texts, one of which answers the other: a review and its verdict, a sentence and its
translation.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meristem.data.encoding import IGNORED, Encoding, open_encoding, padded
from meristem.data.hub import HELD_OUT, load_data_set, split_of
from meristem.data.order import Order, Ordered, splits
from meristem.errors import MeristemError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
Pair = tuple[np.ndarray, np.ndarray]  # tokens of the input, and of the target, ends included


@dataclass(frozen=True)
class Pairs:
    """Tokenized pairs, with longer ones cut; the length that holds every target; and a fingerprint of exactly
    this data.
    """

    train: list[Pair]
    tune: list[Pair]
    eval: list[Pair]
    target_length: int
    encoding: Encoding
    fingerprint: str
    description: str


def open_pairs(
    source: str,
    tokenizer: str = "bytes",
    columns: tuple[str, str] = ("text", "label"),
    lengths: tuple[int, int] = (128, 32),
    fraction: float = 1.0,
    eval_examples: int | None = None,
) -> Pairs:
    """Read and tokenize pairs of texts.

    Args:
        source: a folder with `train` and `test` as .jsonl, .csv or .tsv (with a header line), or the name of
            a Hugging Face data set ("owner/name" or "name:config", which needs the extra `data`).
        tokenizer: as for `open_encoding`. It needs a token for an end.
        columns: the columns of the input and of the target.
        lengths: the largest numbers of tokens of the input and of the target, end tokens included.
        fraction: the share of the training pairs that is used. The choice is random, and the same on every
            machine.
        eval_examples: how many held-out pairs are used. All of them by default.

    Raises:
        MeristemError: if the source or a column does not exist.
    """
    encoding = open_encoding(tokenizer)
    if encoding.end_token is None:
        raise MeristemError(f"tokenizer {tokenizer!r} has no end token, and text-to-text needs one (or `bytes`)")
    rows = [list(part) for part in _rows(source, columns)]
    if not all(rows):
        raise MeristemError(f"{source}: {len(rows[0])} training and {len(rows[1])} evaluation pairs; both are needed")
    chosen, tuning, kept = splits(len(rows[0]), len(rows[1]), fraction, eval_examples)
    parts = [[rows[0][i] for i in chosen], [rows[0][i] for i in tuning], [rows[1][i] for i in kept]]
    digest = hashlib.sha256(f"{encoding.fingerprint} {lengths} {json.dumps(parts)}".encode()).hexdigest()
    train, tune, held = ([_encoded(pair, encoding, lengths) for pair in part] for part in parts)
    longest = max(len(target) for part in (train, tune, held) for _, target in part)
    description = f"{source}: {len(train):,} training, {len(tune):,} tuning and {len(held):,} evaluation pairs"
    return Pairs(train, tune, held, longest, encoding, digest, description)


class PaddedPairs(Ordered):
    """Pairs in the order of a run, all padded to the same lengths.

    Args:
        pairs: the pairs of `Pairs`.
        lengths: the lengths of inputs and targets.
        pad_token: the token after inputs, which is not attended to. Targets are followed by `IGNORED`.
        count: how many pairs this run reads.
        seed: the seed of the order (see `Order`).
        offset: how many examples earlier stages have read (see `Order`).
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        lengths: tuple[int, int],
        pad_token: int,
        count: int,
        seed: int = 0,
        offset: int = 0,
    ) -> None:
        super().__init__(count, Order(len(pairs), seed, offset))
        self.pairs, self.lengths, self.pad_token = pairs, lengths, pad_token

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        text, target = self.pairs[self.order.at(position)]
        return {
            "input_ids": padded(text, self.lengths[0], self.pad_token),
            "attention_mask": padded(np.ones_like(text), self.lengths[0], 0),
            "labels": padded(target, self.lengths[1], IGNORED),
        }


def _encoded(pair: tuple[str, str], encoding: Encoding, lengths: tuple[int, int]) -> Pair:
    assert encoding.end_token is not None
    end = np.array([encoding.end_token], dtype=np.int32)
    text, target = (
        np.concatenate([encoding.encode(part)[: length - 1], end]) for part, length in zip(pair, lengths, strict=True)
    )
    return text, target


def _rows(source: str, columns: tuple[str, str]) -> Iterator[Iterable[tuple[str, str]]]:
    """The training pairs, and those that are held out."""
    folder = Path(source)
    if not folder.is_dir():
        if source.startswith((".", "/", "~")):
            raise MeristemError(f"{source}: no such folder")
        for rows in split_of(load_data_set(source, columns), source):
            yield [(str(row[columns[0]]), str(row[columns[1]])) for row in rows]
        return
    for names in (("train",), HELD_OUT):
        files = (folder / f"{name}{suffix}" for name in names for suffix in (".jsonl", *DELIMITERS))
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise MeristemError(f"{source} has no {names[0]}.jsonl, .csv or .tsv; both train and test are needed")
        yield _read(file, columns)


def _read(file: Path, columns: tuple[str, str]) -> list[tuple[str, str]]:
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        try:
            rows: list[dict[str, Any]] = (
                [json.loads(line) for line in lines if line.strip()]
                if file.suffix == ".jsonl"
                else list(csv.DictReader(lines, delimiter=DELIMITERS[file.suffix], quoting=_quoting(file)))
            )
        except (ValueError, csv.Error) as error:
            raise MeristemError(f"{file} cannot be read: {error}") from error
    for number, row in enumerate(rows, start=1):
        missing = next((c for c in columns if not isinstance(row, dict) or row.get(c) is None), None)
        if missing is not None:
            known = ", ".join(str(name) for name in row) if isinstance(row, dict) else type(row).__name__
            raise MeristemError(f"{file}: entry {number} has no {missing!r}; it has {known}")
    return [(str(row[columns[0]]), str(row[columns[1]])) for row in rows]


def _quoting(file: Path) -> Any:
    return csv.QUOTE_NONE if file.suffix == ".tsv" else csv.QUOTE_MINIMAL  # as is usual in either
