"""Progress on stderr: a spinner or a bar on a terminal, otherwise plain lines at intervals."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from meristem.block_count import count_blocks

if TYPE_CHECKING:
    from rich.console import Console

LONG, OFTEN = 2.0, 30.0  # seconds until the first plain line of a step, and until each further one


class _Words:
    """The text of a step and, while a proof runs, the number of its finished blocks."""

    def __init__(self, about: str) -> None:
        self.about, self.blocks = about, ""

    def count(self, done: int, total: int) -> None:
        self.blocks = f": {done} of {total} blocks proved" if total else ""

    def __str__(self) -> str:
        return self.about + self.blocks


@contextlib.contextmanager
def step(about: str) -> Iterator[None]:
    """A context that shows the present step, with the finished blocks of proofs out of all their blocks.

    On a terminal it is a spinner with the seconds so far. Elsewhere it is a line after two seconds, and one
    every half minute.
    """
    words = _Words(about)
    with _spinning(words) if _console().is_terminal else _lines(words), count_blocks(words.count):
        yield


@contextlib.contextmanager
def bytes_bar(about: str, total: int) -> Iterator[Callable[[int], None]]:
    """A context with a function to call with the number of bytes just done. A proof that runs at the same
    time shows its blocks, as in `step`.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console, words = _console(), _Words(about)
    if not console.is_terminal:
        with step(about):
            yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        number = bar.add_task(about, total=total)

        def told(done: int, blocks: int) -> None:
            words.count(done, blocks)
            bar.update(number, description=str(words))

        with count_blocks(told):
            yield lambda done: bar.advance(number, done)


@contextlib.contextmanager
def _spinning(words: _Words) -> Iterator[None]:
    """A spinner, the text and the seconds so far. They are erased at the end."""
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, TimeElapsedColumn
    from rich.text import Text

    class Now(ProgressColumn):
        def render(self, task: object) -> Text:
            return Text(str(words))

    with Progress(SpinnerColumn(), Now(), TimeElapsedColumn(), console=_console(), transient=True) as bar:
        bar.add_task("", total=None)
        yield


@contextlib.contextmanager
def _lines(words: _Words) -> Iterator[None]:
    """A plain line on the present standard error when a step takes long, and further lines while it lasts."""
    ended, stderr = threading.Event(), sys.stderr

    def tell() -> None:
        wait = LONG
        while not ended.wait(wait):
            print(f"meristem: {words}", file=stderr, flush=True)
            wait = OFTEN

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)
