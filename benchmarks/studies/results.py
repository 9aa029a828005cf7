"""What a study's rows say: the gate by budget, each claim's effect, a verdict in words. Pages and summary are made of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.studies.nodes import asked
from benchmarks.studies.rows import Row, Rows, identity
from benchmarks.studies.search import tuned
from benchmarks.studies.statistics import (
    LEAST_SEEDS,
    Saving,
    differences,
    gap_with_parents_given,
    gate_passes,
    losses,
    saving,
)
from benchmarks.studies.study import Claim, Setting, Side, Study, Tune
from benchmarks.studies.verdicts import verdict
from benchmarks.support.statistics import Effect, effect


def current_rows(study: Study, setting: Setting, rows: Iterable[Row]) -> list[Row]:
    """Those that today's definition would ask for: of the reported ones, those of the setting's seeds and budgets, at the rate that the search
    has chosen.
    """
    known = {side.name: side for side in study.sides}

    def own(row: Row) -> str:
        return identity(asked(setting, known[row["side"]], row["rates"], row["budget"], row["seed"], row["split"]))

    asked_for = [row for row in rows if row["side"] in known and row["id"] == own(row)]
    parents = _rates(study, replace(setting.tune, again=None), asked_for)

    def parents_fit(row: Row) -> bool:
        stages = known[row["side"]].stages
        return row["rates"] == [parents[stage.rate] if stage.rate else row["rate"] for stage in stages]

    fitting = [row for row in asked_for if parents_fit(row)]
    rates = _rates(study, setting.tune, fitting)

    def is_reported(row: Row) -> bool:
        place = row["seed"] in setting.seeds and row["budget"] in setting.budgets
        return place and row["rate"] == rates[row["side"]]

    return [row for row in fitting if row["split"] != "eval" or is_reported(row)]


def _rates(study: Study, tune: Tune, rows: Iterable[Row]) -> dict[str, float | None]:
    """By side, as these rows choose them."""
    rows = list(rows)
    return {side.name: _rate(rows, tune, study.searched(side)) for side in study.sides}


def _rate(rows: Iterable[Row], tune: Tune, side: Side) -> float | None:
    """The rate that these rows choose; None before the search's end, or if every rate diverged."""
    own = [row for row in rows if (row["side"], row["split"]) == (side.name, "tune")]
    found = {(row["rate"], row["budget"], row["seed"]): row for row in own}
    try:
        return tuned(tune, lambda *place: found[place])
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True)
class Finding:
    """A study at one setting, with its rows; those of another definition than today's are left out."""

    study: Study
    name: str
    setting: Setting
    rows: Sequence[Row]

    @staticmethod
    def of(study: Study, name: str, folder: Path) -> Finding:
        setting, rows = study.settings[name], Rows(folder / f"{study.name}.{name}.jsonl").found.values()
        return Finding(study, name, setting, current_rows(study, setting, rows))

    @property
    def gates(self) -> dict[float, bool]:
        return gate_passes(self.study, self.setting, self.rows)

    @property
    def gate_is_measured(self) -> bool:
        """At every budget, on enough seeds."""
        sides = (self.study.gate.better, *self.study.gate.worse)
        return all(
            len(losses(self.rows, side).get(budget, {})) >= LEAST_SEEDS
            for side in sides
            for budget in self.setting.budgets
        )

    @property
    def tested_at(self) -> float | None:
        """The largest budget whose gate passes."""
        return max((budget for budget, passes in self.gates.items() if passes), default=None)

    def gap(self, side: str, budget: float, to: str | None = None) -> Effect | None:
        """Loss minus the baseline's at equal FLOPs, paired by seed; None where there is no pair."""
        theirs = losses(self.rows, to or self.study.baseline).get(budget, {})
        paired = differences(losses(self.rows, side).get(budget, {}), theirs)
        return effect(paired) if paired else None

    def given(self, side: str, budget: float) -> Effect | None:
        """Loss minus the baseline's where the side's parents cost nothing: they are there already."""
        paired = gap_with_parents_given(self.rows, side, self.study.baseline, budget)
        return effect(paired) if paired else None

    def effect_of(self, claim: Claim, budget: float) -> Effect | None:
        """What the claim is about: the side's loss minus that of the side it is held against."""
        if claim.given:
            return self.given(claim.side, budget)
        return self.gap(claim.side, budget, to=claim.versus)

    def saved(self, side: str, budget: float) -> Saving:
        return saving(self.rows, side, self.study.baseline, budget)

    def gate_in_words(self) -> str:
        if not self.rows:
            return "not measured"
        passing = [budget for budget, passes in self.gates.items() if passes]
        if passing:
            return f"passes at {', '.join(f'{budget:g}' for budget in passing)}"
        return "fails" if self.gate_is_measured else "not measured yet"

    def verdict(self, claim: Claim) -> str:
        """In a few words; whatever the sign."""
        budget = self.tested_at
        if budget is None:
            return "not testable at this size" if self.gate_is_measured else "not measured yet"
        other = f" than `{claim.versus}`" if claim.versus else " with the parents given" if claim.given else ""
        words = (f"a lower loss{other}", f"a higher loss{other}")
        return verdict(claim, self.effect_of(claim, budget), *words, self.saved(claim.side, budget))


def findings(study: Study, folder: Path) -> list[Finding]:
    """Of every setting that has rows, the last and largest first."""
    found = [Finding.of(study, name, folder) for name in reversed(study.settings)]
    return [finding for finding in found if finding.rows]
