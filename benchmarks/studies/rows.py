"""Results as JSON rows, one for each (side, seed, budget, learning rate, split): appended as they come, and never measured twice.

A row is known by what was asked, not by caches or the code's revision, so that another machine goes on from the committed file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO, TypeVar

from filelock import FileLock

Row = dict[str, Any]
T = TypeVar("T")


def identity(asked: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of all that was asked."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def in_turn(values: Iterable[T], turn: int) -> list[T]:
    """All values, beginning elsewhere for each of several processes that share the work."""
    values = list(values)
    start = turn % len(values) if values else 0
    return values[start:] + values[:start]


def _end_last_line(file: TextIO) -> None:
    """So that the next row begins a line: end the last one, or take it off if it was cut off in its middle."""
    file.seek(0)
    before, end, last = file.read().rpartition("\n")
    if not last:
        return
    try:
        json.loads(last)
    except ValueError:
        file.truncate(len((before + end).encode()))
    else:
        file.write("\n")


class Rows:
    """The rows of one file, by their `id`; of several with one, the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Row] = {}
        self.read()

    def read(self) -> None:
        """Read the file. A last line that a kill has cut off is passed over, and measured again.

        Raises:
            SystemExit: if another line is no row; the message names file and line.
        """
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines, self.found = text.split("\n"), {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                self.found[row["id"]] = row
            except (ValueError, TypeError, KeyError) as error:
                if number < len(lines):
                    raise SystemExit(f"{self.path}, line {number}, is no row of results: {line[:60]!r}") from error

    def add(self, rows: Iterable[Row]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self.path) + ".lock"), self.path.open("a+", encoding="utf-8") as file:
            _end_last_line(file)
            for row in rows:
                file.write(json.dumps(row) + "\n")
                self.found[row["id"]] = row

    def once(
        self,
        ids: Sequence[str],
        locks: Path,
        make: Callable[[Sequence[str]], Iterable[Row]],
        named: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Row]:
        """The rows of these ids. Those that are missing are taken from another file of the folder, where a study with a side in common has
        measured them, or made now, by one of the processes that share the file.

        Args:
            locks: a folder for the locks of what is being made.
            make: missing ids to their rows.
            named: what a row is called here ("side"), whatever another study calls it.
        """
        if any(own not in self.found for own in ids):
            locks.mkdir(parents=True, exist_ok=True)
            with FileLock(locks / f".{ids[-1]}.lock"):
                self.read()
                self._borrow(ids, named)
                if missing := [own for own in ids if own not in self.found]:
                    self.add(make(missing))
        return [self.found[own] for own in ids]

    def _borrow(self, ids: Sequence[str], named: Mapping[str, Any]) -> None:
        missing = [own for own in ids if own not in self.found]
        others = sorted(self.path.parent.glob("*.jsonl")) if missing else []
        known = {own: row for other in others if other != self.path for own, row in Rows(other).found.items()}
        if there := [{**known[own], **named} for own in missing if own in known]:
            self.add(there)
