"""What a trial is: a question, a gate, ways to solve the same tasks, and one protocol for all of them.

A `Study` reads decayed networks along a budget of compute. A `Trial` trains to the end, and reads one figure for each (task, side, seed): an error,
a loss, a negative log-likelihood. Lower is better in every trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.studies.rows import Row
from benchmarks.studies.statistics import differences
from benchmarks.studies.study import Claim
from benchmarks.support.statistics import Effect, effect

Entries = Mapping[str, Any]
Figures = Mapping[str, float]  # "value" is what sides are compared by
Fit = Callable[[Entries, Entries, float, int, str], Figures]  # (task, side's options, tuned number, seed, split)


@dataclass(frozen=True)
class Way:
    """One side of a trial.

    Args:
        options: what `Trial.fit` is given of it, and with the name all that its result depends on.
        tuned_as: the side whose search serves this one too.
        values: where its search begins; where the setting says by default.
    """

    name: str
    options: Entries = field(default_factory=dict)
    tuned_as: str | None = None
    values: Sequence[float] = ()


@dataclass(frozen=True)
class Condition:
    """The condition under which the claim can be tested on a task.

    Args:
        sides: those whose rows it needs.
        holds: from the reported rows of these sides, by name.
    """

    says: str
    sides: Sequence[str]
    holds: Callable[[Mapping[str, Sequence[Row]]], bool]


def number(figure: float | None) -> float:
    """A figure as a row holds it, whose None is that of a run that diverged."""
    return math.inf if figure is None else figure


def figures_of(rows: Iterable[Row]) -> dict[int, float]:
    """{seed: figure}; infinite where the run diverged."""
    return {row["seed"]: number(row["value"]) for row in rows}


def gap_between(side: Iterable[Row], other: Iterable[Row]) -> Effect | None:
    """The first side's figures minus the other's, paired by seed; None where there is no pair."""
    paired = differences(figures_of(side), figures_of(other))
    return effect(paired) if paired else None


def is_better(side: Iterable[Row], other: Iterable[Row]) -> bool:
    """Whether the first side's figures are shown to be lower than the other's."""
    gap = gap_between(side, other)
    return gap is not None and gap.is_below


@dataclass(frozen=True)
class Scale:
    """The size at which a trial runs.

    Args:
        tasks: options by name; all that the data and the budget of a task depend on.
        values: where the search for a side's number (a learning rate, a penalty) begins; it goes on by `step` at either edge.
            A single value is not searched.
        tuned_on: seeds of the search, on a split of the training rows of its own.
        sides: those that run at this size; all by default.
    """

    tasks: Mapping[str, Entries]
    values: Sequence[float]
    step: float = 2.0
    tuned_on: Sequence[int] = (100, 101)
    seeds: Sequence[int] = tuple(range(10))
    sides: Sequence[str] = ()

    @property
    def is_searched(self) -> bool:
        """Whether sides have a number of their own."""
        return len(self.values) > 1


@dataclass(frozen=True)
class Trial:
    """A question with its gate, sides and protocol; `baseline` is what the others are held against."""

    name: str
    title: str
    question: str
    metric: str
    gate: Condition
    sides: Sequence[Way]
    fit: Fit
    settings: Mapping[str, Scale]
    claims: Sequence[Claim]
    baseline: str
    protocol: str
    limits: Sequence[str] = ()

    def sides_of(self, scale: Scale) -> list[Way]:
        """Those that run at this size, the gate's own and the baseline always."""
        wanted = {self.baseline, *self.gate.sides, *scale.sides}
        return [side for side in self.sides if not scale.sides or side.name in wanted]

    def side(self, name: str) -> Way:
        return next(side for side in self.sides if side.name == name)

    def asked(self, task: Entries, side: Way, value: float, seed: int, split: str) -> dict[str, Any]:
        """All that a result depends on, whatever else is run beside it."""
        own = {"trial": self.name, "task": dict(task), "options": dict(side.options)}
        return {**own, "value": value, "seed": seed, "split": split}
