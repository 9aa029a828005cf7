"""Runs a study: the gate first, every side tuned by the same search, then fresh seeds. What the rows hold already is not run again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.studies.junctions import with_warmups
from benchmarks.studies.nodes import Prices, asked, is_readable, opened, recipe_of
from benchmarks.studies.perform import perform_recipe
from benchmarks.studies.results import current_rows
from benchmarks.studies.rows import Row, Rows, identity, in_turn
from benchmarks.studies.search import tuned
from benchmarks.studies.statistics import gate_passes
from benchmarks.studies.study import Setting, Side, Study
from benchmarks.support.terminal import say


class Engine:
    """One study at one setting.

    Args:
        rows: what is measured already, and where more is kept.
        out: for checkpoints, which can be thrown away.
        seeds: reported ones; the setting's by default.
        turn: which of several processes this is, that share rows and checkpoints: each begins elsewhere and waits for what another is at.
        ungated: measure every side at once, where a lent machine's time is scarce; the page still judges by the gate.
    """

    def __init__(
        self,
        study: Study,
        setting: Setting,
        rows: Rows,
        out: Path,
        seeds: Sequence[int] = (),
        turn: int = 0,
        ungated: bool = False,
    ) -> None:
        self.study, self.setting, self.rows, self.out, self.turn = study, setting, rows, out, turn
        self.ungated = ungated
        self.seeds = list(seeds or setting.seeds)
        self._prices: Prices | None = None
        self._task: Any = None

    def run(self) -> bool:
        """Measure all that is missing. False if the gate fails: then only its own sides are measured."""
        gate = self.study.gate
        for name in () if self.ungated else in_turn((gate.better, *gate.worse), self.turn):
            self.report(self.study.side(name))
        self.rows.read()
        current = current_rows(self.study, self.setting, self.rows.found.values())
        if not self.ungated and not any(gate_passes(self.study, self.setting, current).values()):
            say(f"{self.study.name}: not testable at this size: {gate.says}: no")
            return False
        for side in in_turn(self.study.sides_of(self.setting), self.turn):
            self.report(side)
        return True

    def report(self, side: Side) -> None:
        """The side's losses on the reported seeds, at all budgets that it can be read at."""
        budgets = [budget for budget in self.setting.budgets if is_readable(self.setting, side, budget)]
        for seed in in_turn(self.seeds, self.turn):
            self.measure(side, self.rate_of(side), budgets, seed, "eval")

    def rate_of(self, side: Side, at_first: bool = False) -> float:
        """The learning rate of the side's last stage, found by the search on the tuning seeds and the tuning split.

        Args:
            at_first: at the search's own budget, whatever a longer one says.
        """
        side, tune = self.study.searched(side), self.setting.tune
        if at_first:
            tune = replace(tune, again=None)

        def row(rate: float, budget: float, seed: int) -> Row:
            return self.measure(side, rate, [budget], seed, "tune")[0]

        try:
            return tuned(replace(tune, rates=in_turn(tune.rates, self.turn)), row)
        except ValueError as error:
            raise SystemExit(f"{side.name}: {error}") from error

    def measure(self, side: Side, rate: float, budgets: Sequence[float], seed: int, split: str) -> list[Row]:
        """A row for each budget."""
        rates = [
            self.rate_of(self.study.side(stage.rate), at_first=True) if stage.rate else rate for stage in side.stages
        ]
        ids = {identity(asked(self.setting, side, rates, b, seed, split)): b for b in budgets}
        fixed = {"side": side.name, "split": split, "seed": seed, "rate": rate, "rates": rates}

        def make(missing: Sequence[str]) -> list[Row]:
            left = [ids[own] for own in missing]
            said = ", ".join(f"{budget:g}" for budget in left)
            say(f"{self.study.name}, {side.name}: rate {rate:g}, seed {seed}, {split}, budgets {said}")
            made = self._run(side, rates, left, seed, split)
            return [{"id": own, **fixed, "budget": ids[own], **made[ids[own]]} for own in missing]

        return self.rows.once(list(ids), self.out, make, fixed)

    def _run(
        self, side: Side, rates: Sequence[float], budgets: Sequence[float], seed: int, split: str
    ) -> dict[float, Row]:
        self._prices = self._prices or Prices.of(self.setting)
        content, read = recipe_of(self.setting, self._prices, side, rates, budgets, seed)
        self._task = self._task or opened(self.setting)
        content = with_warmups(content, self.out, self._task, seed, split)
        jobs = content and perform_recipe(content, self.out, self._task, seed, split)
        if not jobs:
            return {budget: {"loss": None} for budget in budgets}
        self._check_networks(side, jobs)
        made = {budget: self._row(jobs, name) for budget, name in read.items()}
        for name in jobs:
            if name.startswith(("run", "at", "mean")):  # later runs begin from other nodes
                shutil.rmtree(jobs[name].directory, ignore_errors=True)
        return made

    def _check_networks(self, side: Side, jobs: Any) -> None:
        """Raises ValueError if a growth or a fusion has made another network than the one whose cost was counted."""
        from meristem.recipes.node import load_result

        assert self._prices is not None
        for name, job in jobs.items():
            if name.startswith("made"):
                network = side.stages[int(name.removeprefix("made").partition("_")[0])].network
                result, wanted = load_result(job.directory), self._prices.parameters[network]
                if result is not None and result.parameters != wanted:
                    raise ValueError(
                        f"{side.name}: {name} has {result.parameters:,} parameters, the setting's {network!r} {wanted:,}"
                    )

    def _row(self, jobs: Any, name: str) -> Row:
        from meristem.recipes.node import load_result, past

        def load(directory: str) -> Any:
            found = load_result(self.out / directory)
            assert found is not None
            return found

        own = load(jobs[name].directory.name)
        before = past(own.parents, own.taken, load).values()
        parents = [result for result in before if not result.name.startswith("run")]
        metrics = {key.removeprefix("eval_"): value for key, value in own.metrics.items()}
        start = load(jobs["run"].directory.name) if "run" in jobs else own
        return {
            **metrics,
            "loss_at_start": start.curve[0].get("eval_loss") if start.curve else None,
            "flops": own.flops + sum(result.flops for result in before),
            "parents_flops": sum(result.flops for result in parents),
            "tokens": own.tokens + sum(result.tokens for result in before),
            "seconds": round(own.seconds + sum(result.seconds for result in before), 1),
            "parameters": own.parameters,
            "revision": own.made_by["revision"][:12],
        }
