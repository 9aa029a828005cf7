"""Chooses numbers that a recipe leaves open, before it runs. One rule applies to every node, so that all
sides of a race get the same effort.

Every number of a node's grid is tried on seeds and on a split (`tune`) that no result uses. The number with
the lowest mean loss is chosen. While it is the highest of its grid, the grid is extended upwards, by the
ratio of its last two numbers. Trials are nodes like all others: they are cached, can be resumed, and run
several at a time in an executor.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from meristem.checkpoints.write import write_json
from meristem.errors import MeristemError
from meristem.recipes.node import Job, load_result
from meristem.recipes.plan import jobs_of_seed
from meristem.recipes.specs.schema import Recipe
from meristem.recipes.specs.train_spec import TrainSpec
from meristem.recipes.specs.tune_spec import TuneSpec
from meristem.recipes.training.guards import diverged

FURTHER = 8  # numbers, at most, by which a grid is extended
Execute = Callable[[Sequence[Job]], Mapping[str, str]]  # jobs -> the messages of those that failed, by directory name
Numbers = tuple[float, ...]  # one for each key


def choose_numbers(recipe: Recipe, out: Path, fingerprint: str, execute: Execute) -> Recipe:
    """The recipe with a number in place of each grid. Each choice is printed on stderr and written to
    `out/tuning/NODE.json`.

    Args:
        recipe: the recipe.
        out: the directory of the run.
        fingerprint: the digest of the data.
        execute: a function that runs jobs, parents first.

    Raises:
        MeristemError: if a trial fails for another reason than divergence, or if all trials diverge.
    """
    for name in recipe.order():
        train = recipe.nodes[name].train
        if train and train.tune:
            chosen = _Search(recipe, name, train, train.tune, out / "tuning", fingerprint, execute).run()
            node = recipe.nodes[name].model_copy(update={"train": train.with_numbers(chosen)})
            recipe = recipe.model_copy(update={"nodes": {**recipe.nodes, name: node}})
    return recipe


class _Search:
    """The search at one node."""

    def __init__(
        self, recipe: Recipe, name: str, train: TrainSpec, tune: TuneSpec, out: Path, fingerprint: str, execute: Execute
    ) -> None:
        self.recipe, self.name, self.train, self.tune = recipe, name, train, tune
        self.out, self.fingerprint, self.execute = out, fingerprint, execute
        self.grids = {key: [float(value) for value in values] for key, values in tune.grids.items()}
        self.tried: dict[Numbers, list[float]] = {}
        self.flops: dict[str, int] = {}

    def run(self) -> dict[str, float]:
        best = self._best()
        for _ in range(FURTHER):
            if not self._goes_on(best):
                break
            best = self._best()
        chosen = dict(zip(self.grids, best, strict=True))
        self._tell(chosen)
        return chosen

    def _best(self) -> Numbers:
        """The best numbers among all that the grids contain so far.

        Raises:
            MeristemError: if every number diverged.
        """
        self._try([point for point in itertools.product(*self.grids.values()) if point not in self.tried])
        best = min(self.tried, key=lambda point: mean(self.tried[point]))
        if not math.isfinite(mean(self.tried[best])):
            raise MeristemError(f"{self.name}: every number of the grid diverged: {self._said()}; start the grid lower")
        return best

    def _goes_on(self, best: Numbers) -> bool:
        """Extend each grid whose highest number is the best, if the key allows a higher one. Returns whether
        a grid was extended.
        """
        longer = False
        for (key, grid), value in zip(self.grids.items(), best, strict=True):
            if value == grid[-1]:
                further = grid[-1] * grid[-1] / grid[-2] if grid[-2] > 0 else 2 * grid[-1] - grid[-2]
                if self._is_valid({**dict(zip(self.grids, best, strict=True)), key: further}):
                    grid.append(further)
                    longer = True
        return longer

    def _is_valid(self, numbers: Mapping[str, float]) -> bool:
        try:
            self._trial(numbers)
        except ValueError:  # a share above 1, for example
            return False
        return True

    def _trial(self, numbers: Mapping[str, float]) -> TrainSpec:
        on = self.tune.on
        budget = {"tokens": on.tokens, "examples": on.examples} if on.tokens or on.examples else {}
        return self.train.with_numbers(numbers, budget)

    def _try(self, points: Sequence[Numbers]) -> None:
        trials, waiting = dict[tuple[Numbers, int], Job](), dict[str, Job]()
        for point, seed in itertools.product(points, self.tune.on.seeds):
            train = self._trial(dict(zip(self.grids, point, strict=True)))
            own = {name: self.recipe.nodes[name] for name in self.recipe.ancestors(self.name)}
            own[self.name] = own[self.name].model_copy(update={"train": train})
            alone = self.recipe.model_copy(update={"nodes": own, "race": None})
            jobs = jobs_of_seed(alone, self.out, self.fingerprint, seed, "tune")
            trials[point, seed] = jobs[self.name]
            waiting |= {job.directory.name: job for job in jobs.values()}
        failed = self.execute(list(waiting.values()))
        for name, said in failed.items():
            if not diverged(self.out / name):
                raise MeristemError(f"{self.name}: a trial failed\n{name}: {said}")
        for (point, _), job in trials.items():
            result = load_result(job.directory)
            self.flops[job.directory.name] = result.flops if result else 0
            self.tried.setdefault(point, []).append(result.metrics["eval_loss"] if result else math.inf)

    def _said(self) -> str:
        shown = (
            f"{', '.join(f'{value:g}' for value in point)} ({mean(losses):.4f})"
            for point, losses in sorted(self.tried.items())
        )
        return f"{', '.join(self.grids)}: " + "; ".join(shown)

    def _tell(self, chosen: Mapping[str, float]) -> None:
        lowest = [key for key, value in chosen.items() if value == self.grids[key][0]]
        highest = [key for key, value in chosen.items() if value == self.grids[key][-1]]
        hint = f"; the lowest {' and '.join(lowest)} is best, so begin the grid lower" if lowest else ""
        if highest:  # at the end of the grid's extension, or of the values that the key allows
            hint += f"; the highest {' and '.join(highest)} is best, so begin the grid higher if there is more"
        words = ", ".join(f"{key} {value:g}" for key, value in chosen.items())
        print(f"{self.name}: {words}, of {self._said()}{hint}", file=sys.stderr, flush=True)
        trials = [
            {"numbers": dict(zip(self.grids, point, strict=True)), "losses": [_finite(loss) for loss in losses]}
            for point, losses in self.tried.items()
        ]
        content: dict[str, Any] = {
            "node": self.name,
            "chosen": dict(chosen),
            "seeds": self.tune.on.seeds,
            "trials": trials,
        }
        write_json(
            self.out / f"{self.name}.json",
            {**content, "flops": sum(self.flops.values()), "at_lowest": lowest, "at_highest": highest},
        )


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
