"""Runs a trial: the gate's sides first, every side tuned by the same search, then fresh seeds. What the rows hold is not run again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies.rows import Row, Rows, identity, in_turn
from benchmarks.support.terminal import say
from benchmarks.trials.results import chosen, current_rows, gate_holds
from benchmarks.trials.trial import Scale, Trial, Way


class Engine:
    """One trial at one setting.

    Args:
        rows: what is measured already, and where more is kept.
        out: for locks, so that processes side by side do nothing twice.
        seeds: reported ones; the setting's by default.
        turn: which of several processes this is.
        ungated: measure every side at once; the page still judges by the gate.
    """

    def __init__(
        self,
        trial: Trial,
        scale: Scale,
        rows: Rows,
        out: Path,
        seeds: Sequence[int] = (),
        turn: int = 0,
        ungated: bool = False,
    ) -> None:
        self.trial, self.scale, self.rows, self.out, self.turn = trial, scale, rows, out, turn
        self.ungated, self.seeds = ungated, list(seeds or scale.seeds)

    def run(self) -> bool:
        """Measure all that is missing, task by task. False if the gate fails on every task: then only its own sides are measured."""
        tested = False
        for task in self.scale.tasks:
            for name in self.trial.gate.sides:
                self.report(task, self.trial.side(name))
            if not self.ungated and not gate_holds(self.trial, self.scale, task, self._current()):
                say(f"{self.trial.name}, {task}: not testable: {self.trial.gate.says}: no")
                continue
            tested = True
            for side in self.trial.sides_of(self.scale):
                self.report(task, side)
        return tested

    def _current(self) -> list[Row]:
        return current_rows(self.trial, self.scale, self.rows.found.values())

    def report(self, task: str, side: Way) -> list[Row]:
        """The side's figures on the reported seeds."""
        value = self.tuned(task, side)
        return [self.measure(task, side, value, seed, "eval") for seed in in_turn(self.seeds, self.turn)]

    def tuned(self, task: str, side: Way) -> float:
        """The side's number, by the search on seeds and a split that no result uses."""
        if side.tuned_as:
            return self.tuned(task, self.trial.side(side.tuned_as))
        return chosen(self.scale, side, lambda value, seed: self.measure(task, side, value, seed, "tune"))

    def measure(self, task: str, side: Way, value: float, seed: int, split: str) -> Row:
        """One row."""
        entries = self.scale.tasks[task]
        own = identity(self.trial.asked(entries, side, value, seed, split))
        fixed = {"task": task, "side": side.name, "tuned": value, "seed": seed, "split": split}

        def make(missing: Sequence[str]) -> list[Row]:
            began = time.perf_counter()
            figures = self.trial.fit(entries, side.options, value, seed, split)
            kept = {key: figure if math.isfinite(figure) else None for key, figure in figures.items()}
            seconds = round(time.perf_counter() - began, 1)
            say(
                f"{self.trial.name}, {task}, {side.name}: {value:g}, seed {seed}, {split}: {kept['value']}, {seconds} s"
            )
            return [{"id": own, **fixed, **kept, "seconds": seconds}]

        return self.rows.once([own], self.out, make, fixed)[0]
