"""The hash of what a model was made from, computed in a second thread while libraries load and weights
are written.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from meristem.checkpoints.source import Source
from meristem.errors import MeristemError

CHUNK = 1 << 20  # bytes read at once
AHEAD = 1 << 32  # bytes that a hash may be ahead of the writing, which then finds them in memory


def source_record(source: str | Source, reading: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """The name of the source, its commit on the hub (None for a directory), and the SHA-256 of its config and
    weight files (None for a name alone: pass what `find_source` found).

    Args:
        reading: called with the number of bytes read so far, before more are read.

    Raises:
        MeristemError: if a file cannot be read.
    """
    found = Source(source, Path(source)) if isinstance(source, str) else source
    digest, done = hashlib.sha256(), 0
    try:
        if not found.path.is_dir():
            return {"name": found.name, "revision": found.revision, "sha256": None}
        for file in hashed_files(found.path):
            digest.update(file.name.encode())
            with open(file, "rb") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    reading(done)
    except OSError as error:
        raise MeristemError(f"{error.filename} cannot be read: {error.strerror or error}") from error
    return {"name": found.name, "revision": found.revision, "sha256": digest.hexdigest()}


def hashed_files(directory: Path) -> list[Path]:
    """Config and weights of a model directory, in the order of their names."""
    return sorted([directory / "config.json", *directory.glob("*.safetensors"), *directory.glob("*.distcp")])


class _Stopped(Exception):
    """Nobody waits for the hash any more."""


class SourceHash:
    """`source_record` in a thread of its own.

    It keeps near the writing, which it is told of. Each byte of a source that is larger than memory then
    comes from the disk once, for both.
    """

    def __init__(self, source: Source) -> None:
        self._bytes = _size(source.path)
        self._turn, self._allowed, self._stopped = threading.Condition(), float(AHEAD), False
        self._pool = ThreadPoolExecutor(1, "hash")
        self._future = self._pool.submit(source_record, source, self._wait)

    def written(self, share: float) -> None:
        """This share of the result, from 0 to 1, is written."""
        with self._turn:
            self._allowed = share * self._bytes + AHEAD
            self._turn.notify()

    def result(self) -> dict[str, Any]:
        """What `source_record` returns, or raises."""
        self.written(1.0)
        return self._future.result()

    def stop(self) -> None:
        """Read no further; there may be no result."""
        with self._turn:
            self._stopped = True
            self._turn.notify()
        self._pool.shutdown()

    def _wait(self, done: int) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or done <= self._allowed)
            if self._stopped:
                raise _Stopped


@contextlib.contextmanager
def hashing(source: Source) -> Iterator[SourceHash]:
    """Gives the hash of `source`, which has begun; it ends with the context."""
    running = SourceHash(source)
    try:
        yield running
    finally:
        running.stop()


def _size(directory: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in hashed_files(directory))
    return 0
