"""How many blocks the passes through streamed networks have run so far, for progress bars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Told = Callable[[int, int], None]  # blocks done, blocks of all passes that have begun


class _Count:
    """Blocks done and blocks to do. Passes run in several threads, one at a time."""

    def __init__(self) -> None:
        self.told: Told | None = None
        self.done = self.total = 0

    def add(self, done: int, total: int) -> None:
        if self.told is not None:
            self.done, self.total = self.done + done, self.total + total
            self.told(self.done, max(self.done, self.total))


_COUNT = _Count()


@contextlib.contextmanager
def count_blocks(told: Told) -> Iterator[None]:
    """A context in which `told(done, total)` is called at every block that a pass reaches, and when passes
    begin.

    Args:
        told: a function that is called with the blocks done and those of all passes that have begun, both
            since the context was entered.
    """
    before = _COUNT.told, _COUNT.done, _COUNT.total
    _COUNT.told, _COUNT.done, _COUNT.total = told, 0, 0
    try:
        yield
    finally:
        _COUNT.told, _COUNT.done, _COUNT.total = before


def expect_blocks(number: int) -> None:
    """Called when a pass of this many blocks begins."""
    _COUNT.add(0, number)


def block_reached() -> None:
    """Called at every block of a pass."""
    _COUNT.add(1, 0)
