"""The passes of a machine's training, kept in a file after each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meristem.adaptive.rbm.training import Learner
from meristem.adaptive.state import keep_state, read_state


class Progress:
    """The passes made so far, kept in `path` if it is given.

    Raises:
        MeristemError: if `path` holds the state of other data or other options.
    """

    def __init__(self, path: str | None, learner: Learner, fingerprint: str):
        self.path = Path(path) if path else None
        self.learner, self.fingerprint = learner, fingerprint
        self.history: list[dict[str, Any]] = []
        kept = self.path and read_state(self.path, fingerprint)
        if kept:
            state, self.history = kept
            learner.restore(state)

    @property
    def epoch(self) -> int:
        return len(self.history)

    def save(self, record: dict[str, Any]) -> None:
        """Record a finished pass."""
        self.history.append(record)
        if self.path:
            keep_state(self.path, self.fingerprint, self.learner.state(), self.history)
