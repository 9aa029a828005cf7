"""Text becomes tokens once, in files that all nodes and processes map into memory. The files are named by
their contents.

A first key (the names, sizes and both times of the files, or the name and version of a data set) finds the
name of the contents without reading the text. The folder is `$MERISTEM_CACHE`, or `meristem` in the user's
cache. Nothing leaves the machine, and the whole folder can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from meristem.data.encoding import Encoding

FORMAT = 3  # of how documents are split and stored
EVAL_SHARE = 20  # one document in 20 is held out for evaluation, and another for tuning
BATCH = 256  # documents that are tokenised together
SPLITS = ("train", "tune", "eval")


@dataclass(frozen=True)
class CachedTokens:
    """The tokens of a corpus: arrays by split (memory-mapped), and what the corpus was."""

    arrays: dict[str, np.ndarray]
    documents: int
    bytes: int  # of the text, in UTF-8
    fingerprint: str


@dataclass(frozen=True)
class _Record:
    documents: int
    bytes: int
    fingerprint: str
    dtype: str


def cache_folder() -> Path:
    """The folder of the cached tokens."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meristem"
    return Path(os.environ.get("MERISTEM_CACHE") or default) / "tokens"


def cached_tokens(key: str | None, documents: Iterable[str], encoding: Encoding, label: str) -> CachedTokens:
    """The tokens of these documents, from the cache if they are in it.

    Args:
        key: identifies the version of the source of the documents. None if nothing does.
        documents: the documents.
        encoding: the tokenizer.
        label: the label of the progress bar.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    named = hashlib.sha256(f"{FORMAT} {key} {encoding.fingerprint}".encode()).hexdigest()
    index = folder / f"{named}.json"
    with FileLock(folder / f"{named}.lock"):
        if key is None or not index.exists() or not (folder / json.loads(index.read_text())["content"]).exists():
            content = _tokenised(folder, documents, encoding, label)
            partial = index.with_suffix(".partial")
            partial.write_text(json.dumps({"content": content}))
            partial.replace(index)
        content = json.loads(index.read_text())["content"]
    return _opened(folder / content)


def _opened(place: Path) -> CachedTokens:
    record = _Record(**json.loads((place / "record.json").read_text()))
    arrays = {}
    for split in SPLITS:
        file, dtype = place / f"{split}.bin", np.dtype(record.dtype)
        arrays[split] = np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.array([], dtype=dtype)
    if record.documents == 1 and any(
        map(len, arrays.values())
    ):  # one long text: hold out its last twentieth, and the one before it for tuning
        whole = next(array for array in arrays.values() if len(array))
        share = len(whole) // EVAL_SHARE
        cuts = [len(whole) - 2 * share, len(whole) - share]
        arrays = {split: part for split, part in zip(SPLITS, np.split(whole, cuts), strict=True)}  # noqa: C416
    return CachedTokens(arrays, record.documents, record.bytes, record.fingerprint)


def _tokenised(folder: Path, documents: Iterable[str], encoding: Encoding, label: str) -> str:
    """Write the tokens and return the name of their folder. It is complete, or not there at all."""
    digest, count, size = hashlib.sha256(f"{encoding.fingerprint} {FORMAT}".encode()), 0, 0
    dtype = np.dtype("uint16" if encoding.vocab_size <= 1 << 16 else "uint32")
    separator = encoding.separator.astype(dtype).tobytes()
    partial = Path(tempfile.mkdtemp(dir=folder, prefix="."))
    try:
        with contextlib.ExitStack() as stack:
            files = {split: stack.enter_context((partial / f"{split}.bin").open("wb")) for split in SPLITS}
            told = stack.enter_context(_bar(label))
            for batch in _batches(documents):
                contents = [document.encode() for document in batch]
                for content, tokens in zip(contents, encoding.encode_all(batch), strict=True):
                    mark = hashlib.sha256(content).digest()
                    digest.update(mark)
                    file = files[{0: "eval", 1: "tune"}.get(mark[0] % EVAL_SHARE, "train")]
                    file.write(tokens.astype(dtype).tobytes())
                    file.write(separator)
                    count, size = count + 1, size + len(content)
                told(count, size)
        if count == 1:  # nothing comes after a single text
            for file in partial.glob("*.bin"):
                os.truncate(file, max(0, file.stat().st_size - len(separator)))
        record = _Record(count, size, digest.hexdigest(), dtype.name)
        (partial / "record.json").write_text(json.dumps(asdict(record)))
        place = folder / record.fingerprint
        if place.exists():
            shutil.rmtree(partial)
        else:
            partial.rename(place)
        return place.name
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    waiting = iter(documents)
    while batch := list(itertools.islice(waiting, BATCH)):
        yield batch


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of documents and megabytes on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda count, size: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("tokenising {task.description}: {task.fields[said]}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None, said="")
        yield lambda count, size: progress.update(task, said=f"{count:,} documents, {size / 1e6:,.0f} MB")
