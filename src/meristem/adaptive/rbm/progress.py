"""A training that can be killed: its state in one file, written after each pass."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from meristem.adaptive.rbm.training import Learner
from meristem.errors import MeristemError


class Progress:
    """The passes made so far, kept in `path` where one is given.

    Raises:
        MeristemError: if `path` holds the state of other data or other options.
    """

    def __init__(self, path: str | None, learner: Learner, fingerprint: str):
        self.path = Path(path) if path else None
        self.learner, self.fingerprint = learner, fingerprint
        self.history: list[dict[str, Any]] = []
        if self.path and self.path.exists():
            self._restore(self.path)

    @property
    def epoch(self) -> int:
        return len(self.history)

    def _restore(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                note = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise MeristemError(f"{path} holds no training state: {error}") from error
        if note.get("fingerprint") != self.fingerprint:
            raise MeristemError(f"{path} is of other data or other options; choose another checkpoint or remove it")
        self.learner.restore(state)
        self.history = json.loads(note["history"])

    def save(self, record: dict[str, Any]) -> None:
        """Note a finished pass."""
        self.history.append(record)
        if not self.path:
            return
        note = {"fingerprint": self.fingerprint, "history": json.dumps(self.history)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        save_file(self.learner.state(), partial, note)
        os.replace(partial, self.path)
