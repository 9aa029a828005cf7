"""What a trial's rows say: the gate by task, each side's difference from the baseline, a verdict in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.studies.rows import Row, Rows, identity
from benchmarks.studies.search import search
from benchmarks.studies.statistics import LEAST_SEEDS
from benchmarks.studies.study import Claim
from benchmarks.studies.verdicts import verdict
from benchmarks.support.statistics import Effect
from benchmarks.trials.trial import Scale, Trial, Way, figures_of, gap_between, number

DIGITS = 3  # of an error in per cents: those of the same count of rows differ by rounding


def reported(rows: Iterable[Row], task: str, side: str) -> list[Row]:
    """The rows of a side on a task that are no search's."""
    return [row for row in rows if (row["task"], row["side"], row["split"]) == (task, side, "eval")]


def gate_holds(trial: Trial, scale: Scale, task: str, rows: Iterable[Row]) -> bool:
    """Whether the claim can be tested on the task: the condition holds, on three seeds or more."""
    rows = list(rows)
    found = {side: reported(rows, task, side) for side in trial.gate.sides}
    return all(len(own) >= min(LEAST_SEEDS, len(scale.seeds)) for own in found.values()) and trial.gate.holds(found)


def _measured(row: Row) -> tuple[float, int, str]:
    return row["tuned"], row["seed"], row["split"]


def current_rows(trial: Trial, scale: Scale, rows: Iterable[Row]) -> list[Row]:
    """Those that today's definition would ask for: of the reported ones, those of the scale's seeds, of the number that the search chooses."""
    known = {side.name: side for side in trial.sides}
    asked = [row for row in rows if row["side"] in known and row["task"] in scale.tasks]

    def own(row: Row) -> str:
        return identity(trial.asked(scale.tasks[row["task"]], known[row["side"]], *_measured(row)))

    current = [row for row in asked if row["id"] == own(row)]
    numbers = {
        (task, side.name): _chosen_by(current, scale, task, trial.side(side.tuned_as or side.name))
        for task in scale.tasks
        for side in trial.sides
    }

    def is_reported(row: Row) -> bool:
        return row["seed"] in scale.seeds and row["tuned"] == numbers[row["task"], row["side"]]

    return [row for row in current if row["split"] != "eval" or is_reported(row)]


def chosen(scale: Scale, side: Way, row: Callable[[float, int], Row]) -> float:
    """A side's number, by the search: the lowest mean figure, and of equal ones the lowest mean loss where there is one.

    Args:
        row: (value, seed) to the row of the search, measured or looked up.

    Raises:
        ValueError: if every value diverged.
    """

    def judged(value: float) -> tuple[float, ...]:
        rows = [row(value, seed) for seed in scale.tuned_on]
        figure = mean(number(own["value"]) for own in rows)
        if not all("test_loss" in own for own in rows):
            return (figure,)
        return round(figure, DIGITS), mean(number(own["test_loss"]) for own in rows)

    values = side.values or scale.values
    return values[0] if len(values) == 1 else search(values, judged, scale.step)


def _chosen_by(rows: Iterable[Row], scale: Scale, task: str, side: Way) -> float | None:
    """The number that these rows choose; None before the search's end, or if every value diverged."""
    found = {
        (row["tuned"], row["seed"]): row
        for row in rows
        if (row["task"], row["side"], row["split"]) == (task, side.name, "tune")
    }
    try:
        return chosen(scale, side, lambda value, seed: found[value, seed])
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True)
class Found:
    """A trial at one setting, with its rows; those of another definition than today's are left out."""

    trial: Trial
    name: str
    scale: Scale
    rows: Sequence[Row]

    @staticmethod
    def of(trial: Trial, name: str, folder: Path) -> Found:
        scale, rows = trial.settings[name], Rows(folder / f"{trial.name}.{name}.jsonl").found.values()
        return Found(trial, name, scale, current_rows(trial, scale, rows))

    def values(self, task: str, side: str) -> dict[int, float]:
        """{seed: figure} of a side; infinite where it diverged."""
        return figures_of(reported(self.rows, task, side))

    def gap(self, task: str, side: str, to: str | None = None) -> Effect | None:
        """Minus another side, by default the baseline, paired by seed; None where there is no pair."""
        return gap_between(reported(self.rows, task, side), reported(self.rows, task, to or self.trial.baseline))

    def gate(self, task: str) -> str:
        """ "passes", "fails", or "not measured"."""
        if any(len(self.values(task, side)) < LEAST_SEEDS for side in self.trial.gate.sides):
            return "not measured"
        return "passes" if gate_holds(self.trial, self.scale, task, self.rows) else "fails"

    def verdict(self, task: str, claim: Claim) -> str:
        """In a few words; whatever the sign."""
        if self.gate(task) != "passes":
            return {"fails": "not testable on this task"}.get(self.gate(task), "not measured yet")
        other = f"`{claim.versus}`" if claim.versus else "the baseline"
        return verdict(claim, self.gap(task, claim.side, claim.versus), f"better than {other}", f"worse than {other}")


def found_of(trial: Trial, folder: Path) -> list[Found]:
    """Of every setting that has rows, the largest first."""
    found = [Found.of(trial, name, folder) for name in reversed(trial.settings)]
    return [own for own in found if own.rows]
