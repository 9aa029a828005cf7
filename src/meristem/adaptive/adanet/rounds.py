"""The rounds of every search: propose, train, fit, judge, and accept the best candidate or stop. Each
finished round is kept.

The search defines its proposals: blocks next to a fixed network (`search.Search`), or modules of any kind
(`ensemble.EnsembleSearch`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from meristem.adaptive.state import keep_state, read_state
from meristem.adaptive.tensorboard import Scalars

C = TypeVar("C")


@dataclass(frozen=True)
class Judged(Generic[C]):
    """A candidate for the next ensemble: its name, its score (lower is better), and whether it may join."""

    name: str
    what: C
    score: float
    usable: bool = True


class Proposals(Protocol[C]):
    """The methods with which a search defines its candidates."""

    measure: str
    """The record's name of the score."""

    def start(self) -> dict[str, Any] | None:
        """The record of the empty ensemble, if it has a score."""
        ...

    def judged(self, number: int) -> Sequence[Judged[C]]:
        """The candidates of a round, after they are proposed, trained, fitted and judged."""
        ...

    def record(self, found: Sequence[Judged[C]], chosen: Judged[C] | None, last: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a round's record besides its number and score. `chosen` is None if the round is
        refused.
        """
        ...

    def join(self, chosen: Judged[C]) -> None:
        """Make the candidate the new ensemble."""
        ...

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """The ensemble as tensors and a note, from which a search can continue."""
        ...

    def restore(self, tensors: dict[str, Tensor], note: Any, history: Sequence[Mapping[str, Any]]) -> None:
        """Restore the ensemble that `state` returned."""
        ...


@dataclass
class Rounds(Generic[C]):
    """Run rounds until one is refused or `max_rounds` are made. `history` holds a record of each.

    Args:
        proposals: the search that defines the candidates.
        max_rounds: the number of rounds, at most.
        min_improvement: the share of the score by which a round has to lower it to be accepted.
        force: accept the best candidate in any case.
        checkpoint: a file that keeps each finished round, and from which an interrupted search continues.
        fingerprint: a function that returns a digest of the data and the options that the checkpoint belongs
            to.
        log_dir: a folder to which the record of every round is written for TensorBoard.
        report: a function that receives a line for each round.
    """

    proposals: Proposals[C]
    max_rounds: int
    min_improvement: float = 0.0
    force: bool = False
    checkpoint: str | None = None
    fingerprint: Callable[[], str] = lambda: ""
    log_dir: str | None = None
    report: Callable[[str], None] = lambda line: None
    history: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> list[dict[str, Any]]:
        """Run the rounds and return the history.

        Raises:
            MeristemError: if the checkpoint belongs to other data or other options.
        """
        path = Path(self.checkpoint) if self.checkpoint else None
        tied_to = self.fingerprint() if path else ""
        kept = read_state(path, tied_to) if path else None
        if kept:
            tensors, note = kept
            self.history[:] = note["history"]
            self.proposals.restore(tensors, note["more"], self.history)
        with Scalars(self.log_dir, first=self.history[-1]["round"] + 1 if self.history else 0) as scalars:
            start = None if self.history else self.proposals.start()
            if start is not None:
                self.history.append({"round": 0, **start})
                scalars.write(self.history[0], 0)
            while self._made() < self.max_rounds and not (self.history and self.history[-1].get("refused")):
                self._round(self._made() + 1)
                scalars.write(self.history[-1], self.history[-1]["round"])
                if path:
                    tensors, more = self.proposals.state()
                    keep_state(path, tied_to, tensors, {"history": self.history, "more": more})
        return self.history

    def _made(self) -> int:
        return self.history[-1]["round"] if self.history else 0

    def _round(self, number: int) -> None:
        found = self.proposals.judged(number)
        best = min(found, key=lambda judged: math.inf if math.isnan(judged.score) else judged.score)
        last = self.history[-1] if self.history else {}
        before = last.get(self.proposals.measure, math.inf)
        enough = before - (self.min_improvement * abs(before) if math.isfinite(before) else 0.0)
        accepted = self.force or (best.score < enough and best.usable)
        record = self.proposals.record(found, best if accepted else None, last)
        if accepted:
            self.proposals.join(best)
            self.report(f"round {number}: {best.name}, {self.proposals.measure} {before:.5f} -> {best.score:.5f}")
        else:
            record["refused"] = True
            self.report(
                f"round {number}: no candidate lowers the {self.proposals.measure} {before:.5f} enough; the search ends"
            )
        self.history.append({"round": number, self.proposals.measure: best.score if accepted else before, **record})
