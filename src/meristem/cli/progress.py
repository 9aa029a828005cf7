"""Progress on stderr: a spinner or a bar on a terminal, one plain line for a long step elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

LONG = 2.0  # seconds


@contextlib.contextmanager
def step(words: str) -> Iterator[None]:
    """Says what is going on: a spinner with the seconds so far; one line after two seconds where stderr is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        with Progress(SpinnerColumn(), TextColumn(words), TimeElapsedColumn(), console=console, transient=True) as bar:
            bar.add_task(words, total=None)
            yield
        return
    stderr = sys.stderr
    timer = threading.Timer(LONG, lambda: print(f"meristem: {words}", file=stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def bytes_bar(task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the number of bytes just done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        with step(task):
            yield lambda done: None
        return
    columns = (TextColumn(task), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        number = bar.add_task(task, total=total)
        yield lambda done: bar.advance(number, done)
