"""Results as JSON rows, one for each (side, seed, budget, learning rate, split): appended as they come, and never measured twice.

A row is known by what was asked, not by caches or the code's revision, so that another machine goes on from the committed file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

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


class Rows:
    """The rows of one file, by their `id`; of several with one, the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Row] = {}
        self.read()

    def read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.found = {row["id"]: row for row in map(json.loads, filter(None, lines))}

    def add(self, rows: Iterable[Row]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self.path) + ".lock"), self.path.open("a", encoding="utf-8") as file:
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
