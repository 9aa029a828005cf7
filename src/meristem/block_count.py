"""How many blocks passes through streamed networks have run so far, for whoever shows progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Told = Callable[[int, int], None]  # blocks done, blocks of all passes that have begun


class _Count:
    """Blocks done and blocks to do; passes run in several threads, one at a time."""

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
    """Inside, `told(done, total)` is called at every block that a pass comes to, and when passes begin.

    Args:
        told: called with the blocks done and those of all passes that have begun, both since this was entered.
    """
    before = _COUNT.told, _COUNT.done, _COUNT.total
    _COUNT.told, _COUNT.done, _COUNT.total = told, 0, 0
    try:
        yield
    finally:
        _COUNT.told, _COUNT.done, _COUNT.total = before


def expect_blocks(number: int) -> None:
    """Called when a pass begins that will run so many blocks."""
    _COUNT.add(0, number)


def block_reached() -> None:
    """Called at every block of a pass."""
    _COUNT.add(1, 0)
