"""What rows say in numbers: losses by budget and seed, paired differences, the gate, and the compute saved to the same loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from benchmarks.studies.rows import Row
from benchmarks.studies.study import Setting, Study
from benchmarks.support.statistics import Effect, effect

LEAST_SEEDS = 3  # of a gate and of a verdict
NOTHING = 0.005  # of a share that is printed in whole per cents


def losses(rows: Iterable[Row], side: str) -> dict[float, dict[int, float]]:
    """{budget: {seed: loss}} of a side's reported rows; diverged ones count as infinite."""
    found: dict[float, dict[int, float]] = {}
    for row in rows:
        if row["side"] == side and row["split"] == "eval":
            found.setdefault(row["budget"], {})[row["seed"]] = math.inf if row["loss"] is None else row["loss"]
    return dict(sorted(found.items()))


def differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Seed by seed, of the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def gate_passes(study: Study, setting: Setting, rows: Iterable[Row]) -> dict[float, bool]:
    """By budget: whether the gate's better side is shown to have a lower loss than each worse one, on three seeds or more."""
    rows = list(rows)
    better, worse = losses(rows, study.gate.better), [losses(rows, side) for side in study.gate.worse]

    def passes(budget: float) -> bool:
        pairs = [differences(better.get(budget, {}), other.get(budget, {})) for other in worse]
        return all(len(paired) >= LEAST_SEEDS and effect(paired).is_below for paired in pairs)

    return {budget: passes(budget) for budget in setting.budgets}


def curve_of(rows: Iterable[Row], side: str, seed: int) -> list[tuple[float, float]]:
    """(FLOPs, loss) of one seed's decayed networks, by rising budget."""
    return [(row["flops"], row["loss"]) for row in _decayed(rows, side, seed)]


def _decayed(rows: Iterable[Row], side: str, seed: int) -> list[Row]:
    """The reported rows of one seed that have not diverged, by rising budget."""
    own = [row for row in rows if (row["side"], row["split"], row["seed"]) == (side, "eval", seed)]
    return sorted((row for row in own if row["loss"] is not None), key=lambda row: row["budget"])


def flops_to(curve: Sequence[tuple[float, float]], loss: float) -> float | None:
    """FLOPs at which a curve of decayed networks first reaches a loss, log-linearly between its budgets; None if it never does, or has done
    so before its first (see `is_before_first`)."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= loss <= high:
            share = (high - loss) / (high - low) if high > low else 0.0
            return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
    return None


def loss_at(curve: Sequence[tuple[float, float]], flops: float) -> float | None:
    """The loss of a curve of decayed networks at so many FLOPs, log-linearly between its budgets; None outside of them."""
    for (before, high), (after, low) in pairwise(curve):
        if before <= flops <= after:
            share = (math.log(flops) - math.log(before)) / (math.log(after) - math.log(before))
            return high + share * (low - high)
    return None


def parents_at(rows: Iterable[Row], side: str, seed: int, flops: float) -> float:
    """FLOPs of a side's parents where it has spent so many in all, between its budgets in proportion: parents may cost the same whatever
    the budget, or a share of it."""
    own = _decayed(rows, side, seed)
    return float(np.interp(flops, [row["flops"] for row in own], [row["parents_flops"] for row in own]))


def is_before_first(curve: Sequence[tuple[float, float]], loss: float) -> bool:
    """Whether the curve's first network is better than this already, so that only a bound is known."""
    return bool(curve) and curve[0][1] < loss


@dataclass(frozen=True)
class Saving:
    """The share of the baseline's compute that a side saves on the way to the baseline's loss at a budget.

    Args:
        effect: None if some seed did not reach that loss: a mean over the others would leave out the worst.
        given: the same where the parents are there already and count nothing.
        reached: seeds that reached it, of `seeds`.
        is_bound: whether some seed was there at its first reading, so that it saves at least this.
    """

    effect: Effect | None
    given: Effect | None
    reached: int
    seeds: int
    is_bound: bool

    def __str__(self) -> str:
        if self.effect is None:
            return f"reached on {self.reached} of {self.seeds} seeds" if self.reached else "not reached"
        if self.is_bound and abs(self.effect.low) < NOTHING and abs(self.effect.high) < NOTHING:
            return "reached at the first reading, so not known"
        least = "at least " if self.is_bound else ""
        mean, low, high = (f"{share:z.0%}" for share in (self.effect.mean, self.effect.low, self.effect.high))
        return f"{least}{mean} [{low}, {high}]"

    def counting(self, given: bool) -> Saving:
        """What a claim is about: everything counted, or with the parents given where that is known."""
        return replace(self, effect=self.given) if given and self.given else self


def saving(rows: Iterable[Row], side: str, baseline: str, budget: float) -> Saving:
    """Everything counted: the side's FLOPs include its parents'; and beside that, as if these were given."""
    rows = list(rows)
    goals = {
        r["seed"]: r
        for r in rows
        if r["side"] == baseline and r["split"] == "eval" and r["budget"] == budget and r["loss"]
    }
    found: list[float] = []
    given: list[float] = []
    seeds, bound = 0, False
    for seed, goal in sorted(goals.items()):
        curve = curve_of(rows, side, seed)
        if not curve:
            continue
        seeds += 1
        spent = curve[0][0] if is_before_first(curve, goal["loss"]) else flops_to(curve, goal["loss"])
        bound |= is_before_first(curve, goal["loss"])
        if spent is not None:
            found.append(1 - spent / goal["flops"])
            given.append(1 - (spent - parents_at(rows, side, seed, spent)) / goal["flops"])
    if len(found) < max(seeds, 1):
        return Saving(None, None, len(found), seeds, bound)
    return Saving(effect(found), effect(given), len(found), seeds, bound)


def gap_with_parents_given(rows: Iterable[Row], side: str, baseline: str, budget: float) -> list[float]:
    """The side's loss minus the baseline's after as many FLOPs as the side has had without its parents, seed by seed; those left out whose
    baseline was not read before and after that many."""
    rows = list(rows)
    found = []
    for own in rows:
        if (own["side"], own["split"], own["budget"]) != (side, "eval", budget):
            continue
        theirs = loss_at(curve_of(rows, baseline, own["seed"]), own["flops"] - own["parents_flops"])
        if theirs is not None:
            found.append((math.inf if own["loss"] is None else own["loss"]) - theirs)
    return found
