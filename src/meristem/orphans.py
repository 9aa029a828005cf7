"""A process ends with the one that started it, however that ended, and even if that happened before the
process could check.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping

PARENT = "MERISTEM_PARENT"  # the process id of whoever started this one
WATCH_SECONDS = 0.2


def environment_of_child(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that this one starts and that calls `watching_parent`."""
    return {**os.environ, **(more or {}), PARENT: str(os.getpid())}


@contextlib.contextmanager
def watching_parent(when_gone: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A context in which the process ends when the one that started it ends, or has already ended."""
    parent, over = int(os.environ.get(PARENT) or os.getppid()), threading.Event()

    def watch() -> None:
        while True:
            if os.getppid() != parent:
                when_gone()
                os._exit(1)
            if over.wait(WATCH_SECONDS):
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
