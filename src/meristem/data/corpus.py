"""A corpus: long arrays of tokens for training, tuning and evaluation, split by document. They stay on disk,
whatever their size.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meristem.data.encoding import Encoding, open_encoding
from meristem.data.hub import load_data_set, version_of, wrong_row
from meristem.data.megatron import is_index
from meristem.data.token_cache import EVAL_SHARE, cached_tokens
from meristem.data.token_files import SUFFIXES, fingerprint_of, is_token_source, open_tokens, split_files
from meristem.errors import MeristemError

TABLES = {".parquet", ".arrow"}  # rows that are no text as they lie
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".json", ".jsonl", ".csv", ".c", ".h", ".js", ".ts"}
FIRST_BYTES = 8192

LONGEST_TOKEN = 64  # characters; so many for each token hold as many tokens as wanted, as a rule


@dataclass(frozen=True)
class Corpus:
    """Token arrays (1-D, integers, possibly memory-mapped), the size of their vocabulary, and a fingerprint
    of exactly this data.

    It also holds the tokens for padding, for a masked token, for removed spans and for an end, if the
    tokenizer has them. `documents` and `bytes` are those of the text, if it was read as text.
    """

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
    documents: int | None = None
    bytes: int | None = None
    separator: int | None = None  # the last token of each document, where it has one of its own

    @property
    def tokens(self) -> int:
        """The number of tokens in all splits together."""
        return len(self.train) + len(self.tune) + len(self.eval)


def open_corpus(source: str, tokenizer: str = "bytes", text_column: str = "text", stream: bool = False) -> Corpus:
    """Tokenize a corpus, or open existing tokens.

    Text is tokenized once, into files that all processes map into memory (see `data.token_cache`).

    Args:
        source: "python-stdlib" (the library sources of the running Python), a text file, a folder of text
            files, tokens (an `.npy` or `.bin` file, or a folder with such files for train, eval and possibly
            tune; see `data.token_files`), or the name of a Hugging Face data set ("owner/name" or
            "name:config", which needs the extra `data`).
        tokenizer: "bytes" (256 tokens), or the name or directory of a Hugging Face tokenizer. For tokens, the
            tokenizer that made them, or "bytes".
        text_column: the column of a Hugging Face data set. If it is not "text", a file or folder (.jsonl,
            .csv, .parquet) is read as a data set too.
        stream: read a Hugging Face data set, or such a file or folder, as a stream, without a copy of its
            text on disk.

    Raises:
        MeristemError: if the source does not exist, or if it holds too little text.
    """
    if is_token_source(Path(source)):
        return _of_tokens(Path(source), tokenizer)
    key, documents = _documents(source, text_column, stream)
    encoding = open_encoding(tokenizer)
    found = cached_tokens(key, documents, encoding, source)
    train, tune, held_out = (found.arrays[split] for split in ("train", "tune", "eval"))
    if not found.bytes:
        raise MeristemError(f"{source} holds no text")
    if not len(train) or not len(held_out):
        raise MeristemError(
            f"{source}: {found.documents} documents are too few to hold some out for evaluation (by chance, one in {EVAL_SHARE}); "
            "give more, or all text in one file, whose end is then held out"
        )
    description = f"{source}: {found.documents} documents, {_sizes(train, tune, held_out)}"
    special = encoding.pad_token, encoding.mask_token, encoding.sentinels, encoding.end_token
    known = encoding.vocab_size, found.fingerprint, description
    separator = int(encoding.separator[0]) if len(encoding.separator) else None
    return Corpus(train, tune, held_out, *known, *special, found.documents, found.bytes, separator)


def first_tokens(source: str, tokenizer: str, count: int) -> np.ndarray:
    """The first tokens of a source, at most `count`: int64 of shape (count,). Only as much of the source is
    read as this needs.

    Args:
        source: as for `open_corpus`, with any length of text.
        tokenizer: as for `open_corpus`.
        count: the largest number of tokens.

    Raises:
        MeristemError: as `open_corpus`, except that any length of text is enough.
    """
    if is_token_source(Path(source)):
        return np.array(open_corpus(source, tokenizer).train[:count], dtype=np.int64)
    encoding, found = open_encoding(tokenizer), np.zeros(0, dtype=np.int64)
    for document in _documents(source, "text", stream=True)[1]:
        found = np.concatenate([found, encoding.encode(document[: count * LONGEST_TOKEN]), encoding.separator])
        if len(found) >= count:
            break
    if len(found) <= len(encoding.separator):
        raise MeristemError(f"{source} holds no text")
    return found[:count].astype(np.int64)


def _sizes(train: np.ndarray, tune: np.ndarray, held_out: np.ndarray) -> str:
    return f"{len(train):,} training, {len(tune):,} tuning and {len(held_out):,} evaluation tokens"


def _of_tokens(path: Path, tokenizer: str) -> Corpus:
    """A corpus from token files. Splits that a folder does not contain are cut from the end of its training
    tokens.
    """
    files = split_files(path)
    opened = {split: open_tokens(file) for split, file in files.items()}
    whole, said = opened["train"]
    arrays = {split: tokens for split, (tokens, _) in opened.items()}
    share = len(whole) // EVAL_SHARE
    for split in ("eval", "tune"):
        if split not in arrays:
            whole, arrays[split] = whole[: len(whole) - share], whole[len(whole) - share :]
    encoding: Encoding | None = None if tokenizer == "bytes" else open_encoding(tokenizer)
    if encoding and encoding.vocab_size > said["vocab_size"]:
        raise MeristemError(
            f"{path}: vocab_size {said['vocab_size']} is less than the tokenizer's {encoding.vocab_size}"
        )
    digest = hashlib.sha256(repr([sorted(said.items()), encoding and encoding.fingerprint]).encode())
    for split, file in sorted(files.items()):
        digest.update(f"{split} {fingerprint_of(file)}".encode())
    pad, mask, end = (said.get(key, getattr(encoding, key, None)) for key in ("pad_token", "mask_token", "end_token"))
    description = f"{path}: tokens on disk, {_sizes(whole, arrays['tune'], arrays['eval'])}"
    special = pad or 0, mask, encoding.sentinels if encoding else (), end
    known = said["vocab_size"], digest.hexdigest(), description
    return Corpus(whole, arrays["tune"], arrays["eval"], *known, *special, separator=end)


def _documents(source: str, text_column: str, stream: bool) -> tuple[str | None, Iterable[str]]:
    """What identifies the version of the source, and its documents, which are not read before they are
    needed.
    """
    path = Path(source)
    if source == "python-stdlib":
        return _read(_stdlib())
    if path.exists() and (stream or text_column != "text" or _has_rows(path, text_column)):
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        rows = load_data_set(source, [text_column], split="train", stream=stream)
        return f"{text_column} {_read(files)[0]}", _column(rows, text_column, source)
    if path.is_file():
        return _read([path])
    if path.is_dir():
        tokens = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        if tokens:
            raise MeristemError(
                f"{source} holds token files ({', '.join(tokens[:3])}{', ...' if len(tokens) > 3 else ''}), and none is named train.bin or "
                "train.npy; give one of them, or several as `sources: [{source: FILE, weight: 1}, ...]`"
            )
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in TEXT_SUFFIXES)
        if not files:
            raise MeristemError(
                f"{source} holds no text files ({', '.join(sorted(TEXT_SUFFIXES))}) and no tokens (train.bin, train.npy); "
                "a folder of .parquet is read with `stream: true`"
            )
        return _read(files)
    if path.with_name(f"{path.name}.bin").is_file() and path.with_name(f"{path.name}.idx").is_file():
        raise MeristemError(f"{source}: no such file or folder; Megatron's tokens are in {source}.bin")
    if (
        source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or path.suffix.lower() in TEXT_SUFFIXES | TABLES | {*SUFFIXES}
    ):
        raise MeristemError(f"{source}: no such file or folder")
    rows = load_data_set(source, [text_column], split="train", stream=stream)
    version = version_of(rows)
    key = None if version is None else f"{source} {text_column} {version}"
    return key, _column(rows, text_column, source)


def _has_rows(file: Path, column: str) -> bool:
    """Whether a file holds rows with `column` as their text, and not text that happens to be JSON or to
    contain commas.
    """
    if not file.is_file() or file.suffix.lower() not in {*TABLES, ".jsonl", ".csv"}:
        return False
    if file.suffix.lower() in TABLES:
        return True
    with file.open(encoding="utf-8", errors="replace", newline="") as content:
        first = content.readline(1 << 20)
        try:
            names = json.loads(first) if file.suffix.lower() == ".jsonl" else next(csv.reader([first]), [])
        except (ValueError, csv.Error):
            return False
    return isinstance(names, dict | list) and column in names


def _column(rows: Iterable[Mapping[str, Any]], column: str, source: str) -> Iterator[str]:
    """The text of each row. Raises MeristemError if a row has none, because a stream may not know its columns
    before it is read.
    """
    try:
        for row in rows:
            if column not in row:
                raise MeristemError(f"data set {source!r} has no column {column!r}; it has {', '.join(row)}")
            yield str(row[column])
    except UnicodeDecodeError as error:
        raise MeristemError(f"{source} is not text in UTF-8: {error}") from error
    except MeristemError:
        raise
    except Exception as error:  # of the library's reader, which does not say where
        said = wrong_row(Path(source))
        if said is None:
            raise
        raise MeristemError(said) from error


def _read(files: Sequence[Path]) -> tuple[str, Iterable[str]]:
    states = [(str(file.absolute()), file.stat()) for file in files]
    known = [(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states]
    key = hashlib.sha256(repr(known).encode()).hexdigest()
    return key, (_text_of(file) for file in files)


def _text_of(file: Path) -> str:
    """Raises MeristemError for a file that is no text; a zero byte near its beginning tells, as in git."""
    content = file.read_bytes()
    if b"\0" in content[:FIRST_BYTES]:
        more = f"; its tokens are in {file.with_suffix('.bin').name}" if is_index(file) else ""
        raise MeristemError(f"{file} is not text in UTF-8: it holds zero bytes{more}")
    return content.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def _stdlib() -> list[Path]:
    """The library sources of Python, a real corpus on every machine, without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}
    return [file for file in sorted(root.rglob("*.py")) if not skipped & set(file.relative_to(root).parts)]
