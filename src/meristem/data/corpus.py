"""A corpus: two long arrays of tokens, for training and evaluation, split by document."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meristem.errors import MeristemError, first_line

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".json", ".jsonl", ".csv", ".c", ".h", ".js", ".ts"}
SEPARATOR, MASK, END = 0, 1, 2  # bytes that do not occur in text: between documents, for a masked byte, at an end
SENTINELS = 100  # tokens that stand for a span, behind the 256 bytes
EVAL_SHARE = 20  # one document in 20 is held out


@dataclass(frozen=True)
class Corpus:
    """Token arrays (1-D, int32), the size of their vocabulary, and a fingerprint of exactly this data; and the tokens for a masked
    token, for spans taken out, and for an end, where the tokenizer has them."""

    train: np.ndarray
    eval: np.ndarray
    vocab_size: int
    fingerprint: str
    description: str
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
    encode, vocab_size, separator, special = _encoder(tokenizer)
    parts: dict[bool, list[np.ndarray]] = {True: [], False: []}
    digest = hashlib.sha256(tokenizer.encode())
    count = 0
    for document in documents:
        content = document.encode()
        mark = hashlib.sha256(content).digest()
        digest.update(mark)
        parts[mark[0] % EVAL_SHARE == 0] += [encode(document), separator]
        count += 1
    if count == 1:  # one long text: hold out its last twentieth
        whole = parts[True][0] if parts[True] else parts[False][0]
        cut = len(whole) - len(whole) // EVAL_SHARE
        parts = {False: [whole[:cut]], True: [whole[cut:]]}
    if not parts[True] or not parts[False]:
        raise MeristemError(f"{source}: {count} documents are too few to hold some out for evaluation")
    train, held_out = np.concatenate(parts[False]), np.concatenate(parts[True])
    description = f"{source}: {count} documents, {len(train):,} training and {len(held_out):,} evaluation tokens"
    return Corpus(train, held_out, vocab_size, digest.hexdigest(), description, **special)


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
    return _hub(source, text_column)


def _stdlib() -> Iterable[str]:
    """Python's own library sources, a real corpus that every machine has; tests and installed packages left out."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}
    for file in sorted(root.rglob("*.py")):
        if not skipped & set(file.relative_to(root).parts):
            yield file.read_text(encoding="utf-8", errors="replace")


def _hub(source: str, text_column: str) -> Iterable[str]:
    try:
        import datasets
    except ImportError as error:
        raise MeristemError(
            f"{source} is no file or folder, and reading data sets by name needs: pip install 'meristem[data]'"
        ) from error
    name, _, config = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, split="train")
    except Exception as error:
        raise MeristemError(f"data set {source!r} cannot be loaded: {first_line(error)}") from error
    if text_column not in loaded.column_names:
        raise MeristemError(
            f"data set {source!r} has no column {text_column!r}; it has {', '.join(loaded.column_names)}"
        )
    return (str(row[text_column]) for row in loaded)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _encoder(tokenizer: str) -> tuple[Callable[[str], np.ndarray], int, np.ndarray, dict[str, Any]]:
    """How text becomes tokens, how many there are, what stands between documents, and the special ones."""
    if tokenizer == "bytes":
        special = {"mask_token": MASK, "sentinels": tuple(range(256, 256 + SENTINELS)), "end_token": END}
        return _encode_bytes, 256, np.array([SEPARATOR], dtype=np.int32), special
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except Exception as error:
        raise MeristemError(f"tokenizer {tokenizer!r} cannot be loaded: {first_line(error)}") from error
    end, known = loaded.eos_token_id, loaded.get_vocab()
    spans = [known[name] for name in (f"<extra_id_{i}>" for i in range(SENTINELS)) if name in known]
    special = {"mask_token": loaded.mask_token_id, "sentinels": tuple(spans), "end_token": end}
    separator = np.array([] if end is None else [end], dtype=np.int32)
    encode = lambda text: np.array(loaded.encode(text, add_special_tokens=False), dtype=np.int32)  # noqa: E731
    return encode, len(loaded), separator, special


def _encode_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
