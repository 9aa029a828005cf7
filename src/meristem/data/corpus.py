"""A corpus: long arrays of tokens for training, tuning and evaluation, split by document."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meristem.data.encoding import open_encoding
from meristem.data.hub import load_data_set
from meristem.errors import MeristemError

FORMAT = 2  # of how documents are split
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".json", ".jsonl", ".csv", ".c", ".h", ".js", ".ts"}
EVAL_SHARE = 20  # one document in 20 is held out for evaluation, and another for tuning


@dataclass(frozen=True)
class Corpus:
    """Token arrays (1-D, int32), the size of their vocabulary, and a fingerprint of exactly this data; and the tokens for padding, for a
    masked token, for spans taken out, and for an end, where the tokenizer has them."""

    train: np.ndarray
    tune: np.ndarray
    eval: np.ndarray
    vocab_size: int
    fingerprint: str
    description: str
    pad_token: int = 0
    mask_token: int | None = None
    sentinels: tuple[int, ...] = ()
    end_token: int | None = None


def open_corpus(source: str, tokenizer: str = "bytes", text_column: str = "text") -> Corpus:
    """Read and tokenize a corpus.

    Args:
        source: "python-stdlib" (the running Python's own library sources), a text file, a folder of text files, or the
            name of a Hugging Face data set ("owner/name" or "name:config"; needs the extra `data`).
        tokenizer: "bytes" (256 tokens) or the name or directory of a Hugging Face tokenizer.
        text_column: of a Hugging Face data set.

    Raises:
        MeristemError: if the source is not there or holds too little text.
    """
    documents = _documents(source, text_column)
    encoding = open_encoding(tokenizer)
    parts: dict[str, list[np.ndarray]] = {"train": [], "tune": [], "eval": []}
    digest = hashlib.sha256(f"{encoding.fingerprint} {FORMAT}".encode())
    count = 0
    for document in documents:
        content = document.encode()
        mark = hashlib.sha256(content).digest()
        digest.update(mark)
        parts[{0: "eval", 1: "tune"}.get(mark[0] % EVAL_SHARE, "train")] += [
            encoding.encode(document),
            encoding.separator,
        ]
        count += 1
    if count == 1:  # one long text: hold out its last twentieth, and the one before it for tuning
        whole = next(part[0] for part in parts.values() if part)
        share = len(whole) // EVAL_SHARE
        cuts = [len(whole) - 2 * share, len(whole) - share]
        parts = dict(zip(("train", "tune", "eval"), ([part] for part in np.split(whole, cuts)), strict=True))
    if not parts["eval"] or not parts["train"]:
        raise MeristemError(f"{source}: {count} documents are too few to hold some out for evaluation")
    none = np.array([], dtype=np.int32)
    train, tune, held_out = (np.concatenate([none, *parts[split]]) for split in ("train", "tune", "eval"))
    description = f"{source}: {count} documents, {len(train):,} training, {len(tune):,} tuning and {len(held_out):,} evaluation tokens"
    special = encoding.pad_token, encoding.mask_token, encoding.sentinels, encoding.end_token
    return Corpus(train, tune, held_out, encoding.vocab_size, digest.hexdigest(), description, *special)


def _documents(source: str, text_column: str) -> Iterable[str]:
    path = Path(source)
    if source == "python-stdlib":
        return _stdlib()
    if path.is_file():
        return [path.read_text(encoding="utf-8", errors="replace")]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in TEXT_SUFFIXES)
        if not files:
            raise MeristemError(f"{source} holds no text files ({', '.join(sorted(TEXT_SUFFIXES))})")
        return (file.read_text(encoding="utf-8", errors="replace") for file in files)
    if source.startswith((".", "/", "~")):
        raise MeristemError(f"{source}: no such file or folder")
    return (str(row[text_column]) for row in load_data_set(source, [text_column], split="train"))


def _stdlib() -> Iterable[str]:
    """Python's own library sources, a real corpus that every machine has; tests and installed packages left out."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}
    for file in sorted(root.rglob("*.py")):
        if not skipped & set(file.relative_to(root).parts):
            yield file.read_text(encoding="utf-8", errors="replace")
