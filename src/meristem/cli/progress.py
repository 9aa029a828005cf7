"""A progress bar with bytes per second, on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextlib.contextmanager
def bytes_bar(task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the number of bytes just done; nothing is drawn where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(task), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        number = bar.add_task(task, total=total)
        yield lambda done: bar.advance(number, done)
