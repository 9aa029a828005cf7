"""Safetensors files written while their tensors are made: headers first, then every tensor in its place.

The files equal those that safetensors writes, byte for byte. safetensors needs all tensors of a file in
memory. Here one at a time is enough.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meristem.anatomy.streamed import Piece, Span
from meristem.checkpoints.headers import DTYPES
from meristem.checkpoints.stored import INDEX
from meristem.errors import MeristemError

NAMES = {dtype: name for name, dtype in DTYPES.items()}
DEFAULT_SHARD_SIZE = "5GB"
COPIED = 1 << 28  # bytes that the kernel is asked to copy at once
NO_COPYING = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.ETXTBSY)
Progress = Callable[[int], None]  # called with the number of bytes just written


@dataclass(frozen=True)
class Shards:
    """The file of each tensor, and its place in it."""

    files: Mapping[str, tuple[str, ...]]  # {file: names in it}
    places: Mapping[str, tuple[str, int]]  # {name: (file, offset in bytes)}
    headers: Mapping[str, bytes]
    sizes: Mapping[str, int]  # {file: bytes}

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


def lay_out(layout: Mapping[str, Tensor], max_shard_size: str | int = DEFAULT_SHARD_SIZE) -> Shards:
    """The place of every tensor.

    Args:
        layout: {name on disk: a stand-in on the meta device}, in the order of writing.
        max_shard_size: the largest size of a file. A larger tensor has a file of its own.

    Raises:
        MeristemError: if the size is not like "5GB", or if safetensors files cannot hold a dtype.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    for name, tensor in layout.items():
        if tensor.dtype not in NAMES:
            raise MeristemError(f"{name} has dtype {tensor.dtype}, which cannot be written; known: {', '.join(DTYPES)}")
    try:
        split = split_torch_state_dict_into_shards(
            dict(layout), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
        )
    except ValueError as error:
        raise MeristemError(f"a shard's size is like 5GB or 500MB, got {max_shard_size!r}") from error
    places: dict[str, tuple[str, int]] = {}
    headers, sizes = {}, {}
    for file, names in split.filename_to_tensors.items():
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        starts = {}
        for name in sorted(names, key=lambda n: (-_RANK[layout[n].dtype], n)):
            tensor = layout[name]
            starts[name], end = offset, offset + tensor.numel() * tensor.dtype.itemsize
            header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        headers[file] = len(text).to_bytes(8, "little") + text
        sizes[file] = len(headers[file]) + offset
        places |= {name: (file, len(headers[file]) + start) for name, start in starts.items()}
    files = {file: tuple(names) for file, names in split.filename_to_tensors.items()}
    return Shards(files, places, headers, sizes)


# the order in which safetensors sorts types, last first: so that all tensors are aligned
_RANK = {
    dtype: rank
    for rank, dtype in enumerate(
        (torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32,
         torch.float64, torch.int64)
    )
}  # fmt: skip


def check_space(out: Path, needed: int) -> None:
    """Raises MeristemError if the disk of `out` has less than `needed` bytes left."""
    place = out
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise MeristemError(
            f"{out}: {needed / 1e9:,.2f} GB to write, {free / 1e9:,.2f} GB free on its disk; name another place, or smaller sizes"
        )


def write_shards(
    directory: Path,
    shards: Shards,
    pieces: Iterable[tuple[str, Piece]],
    progress: Progress | None = None,
    hidden: str = "",
) -> None:
    """Write the files. One thread writes while the next piece is made, and at most one piece waits.

    Args:
        directory: the directory of the files.
        shards: the place of every tensor.
        pieces: (name on disk, (first rows of all its places, contiguous rows)), in any order. Together they
            have to fill `shards`.
        progress: a function that is called with the number of bytes just written.
        hidden: a prefix of the name of a file until it is complete.

    Raises:
        OSError: if the disk is full.
    """
    with one_thread(), Writer(directory, shards, progress, hidden) as writer:
        for piece in pieces:
            writer.put(piece)


def write_index(directory: Path, shards: Shards, total_parameters: int) -> None:
    """Write the index that says which tensor is in which file, if there are several files.

    Args:
        directory: the directory of the files.
        shards: the place of every tensor.
        total_parameters: the number of parameters for the index.
    """
    if len(shards.files) > 1:
        metadata = {"total_parameters": total_parameters, "total_size": sum(
            shards.sizes[file] - len(shards.headers[file]) for file in shards.files)}  # fmt: skip
        index = {"metadata": metadata, "weight_map": {n: f for f, names in shards.files.items() for n in names}}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A context in which torch uses one thread. Pieces are small, so threads that share one would wait for
    each other and slow the writer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Writer:
    """Writes in a thread of its own. An error there is raised at the next `put` or at the end."""

    def __init__(self, directory: Path, shards: Shards, progress: Progress | None, hidden: str = "") -> None:
        self._directory, self._shards, self._progress, self._hidden = directory, shards, progress, hidden
        self._queue: queue.Queue[tuple[str, Piece] | None] = queue.Queue(maxsize=1)
        self._failure: BaseException | None = None
        self._open: dict[str, int] = {}
        self._left: dict[str, int] = {}  # bytes
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def put(self, piece: tuple[str, Piece]) -> None:
        self._raise()
        self._queue.put(piece)

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise()
            self._check_whole()

    def _check_whole(self) -> None:
        """Raise an error for a piece that was never made. It would be a hole in a file, which reads as
        zeros.
        """
        for file in self._shards.files:
            if self._left.get(file) != 0:
                missing = self._left.get(file, self._shards.sizes[file])
                raise AssertionError(f"{missing:,} bytes of {file} have not been made; please report this")

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._failure is not None:
                continue  # let the maker come to its next put
            try:
                self._write(*item)
            except BaseException as error:  # raised again by the maker
                self._failure = error
        for handle in self._open.values():
            os.close(handle)

    def _write(self, name: str, piece: Piece) -> None:
        (file, offset), (places, rows) = self._shards.places[name], piece
        if self._left.get(file) == 0:
            return  # nothing but empty tensors was left of it
        if file not in self._open:
            self._open[file] = os.open(
                self._directory / f"{self._hidden}{file}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644
            )
            os.pwrite(self._open[file], self._shards.headers[file], 0)
            self._left[file] = self._shards.sizes[file] - len(self._shards.headers[file])
        if isinstance(rows, Span):
            self._copy(file, offset, rows)
        else:
            self._write_rows(file, offset, places, rows)
        if not self._left[file]:
            self._close(file)

    def _write_rows(self, file: str, offset: int, places: list[int], rows: Tensor) -> None:
        data = rows.flatten().view(torch.uint8).numpy()
        for place in places:
            self._write_at(file, offset + place * (len(data) // max(1, len(rows)) if rows.dim() else 0), data)

    def _close(self, file: str) -> None:
        handle = self._open.pop(file)
        os.fsync(handle)
        os.close(handle)
        if self._hidden:
            os.rename(self._directory / f"{self._hidden}{file}", self._directory / file)

    def _copy(self, file: str, offset: int, span: Span) -> None:
        """Copy bytes of another file in the kernel, without passing through this process, if the file systems
        can do that.
        """
        with open(span.file, "rb", buffering=0) as source:
            done = 0
            while done < span.bytes:
                count = _copy_range(
                    source.fileno(), self._open[file], min(span.bytes - done, COPIED), span.start + done, offset + done
                )
                if not count:
                    raise MeristemError(f"{span.file} became shorter while it was read")
                done += count
                self._left[file] -= count
                if self._progress is not None:
                    self._progress(count)

    def _write_at(self, file: str, offset: int, data: Any) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._open[file], left[: 1 << 26], offset)
            left, offset = left[written:], offset + written
            self._left[file] -= written
            if self._progress is not None:
                self._progress(written)


def _copy_range(source: int, target: int, count: int, source_offset: int, target_offset: int) -> int:
    """The number of bytes copied from one open file to the other: as many as the kernel copies at once, or a
    small piece by read and write.
    """
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count, source_offset, target_offset)
        except OSError as error:
            if error.errno not in NO_COPYING:
                raise
    return os.pwrite(target, os.pread(source, min(count, 1 << 22), source_offset), target_offset)
