"""A race: a challenger against a baseline at equal compute, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import mean, stdev
from typing import Any, Literal

from meristem.errors import MeristemError
from meristem.recipes.node import NodeResult, past
from meristem.recipes.run import Results
from meristem.recipes.specs.schema import Recipe

Cost = Literal["flops", "seconds"]
SIDES = ("challenger", "baseline")
EQUAL = 0.01  # a difference of compute, as a share, that counts as none


@dataclass(frozen=True)
class Lap:
    """One seed of a race. Compute is in FLOPs, and `ancestors` is the cost of the challenger's ancestors."""

    seed: int
    baseline_loss: float
    challenger_loss: float
    baseline_flops: float
    challenger_flops: float  # ancestors included
    ancestors_flops: float
    baseline_seconds: float
    challenger_seconds: float
    challenger_loss_at_equal_flops: float
    baseline_loss_at_equal_flops: float
    flops_to_baseline_loss: float | None  # None: never reached
    seconds_to_baseline_loss: float | None
    ancestors_seconds: float

    @property
    def saving(self) -> float | None:
        """The share of the baseline's compute that the challenger saves until it reaches the baseline's final
        loss, or None if it does not reach it.
        """
        return None if self.flops_to_baseline_loss is None else 1 - self.flops_to_baseline_loss / self.baseline_flops

    @property
    def saving_if_parents_are_given(self) -> float | None:
        if self.flops_to_baseline_loss is None:
            return None
        return 1 - (self.flops_to_baseline_loss - self.ancestors_flops) / self.baseline_flops

    @property
    def time_saving(self) -> float | None:
        """The same saving in seconds of training steps on this machine."""
        return (
            None if self.seconds_to_baseline_loss is None else 1 - self.seconds_to_baseline_loss / self.baseline_seconds
        )


def race(recipe: Recipe, results: Results) -> list[Lap]:
    """Compare the two nodes that the `race` section of the recipe names, for every seed.

    Raises:
        MeristemError: if the recipe has no race.
    """
    if recipe.race is None:
        raise MeristemError("this recipe has no `race: {challenger: ..., baseline: ...}` section")
    return [_lap(recipe, seed, nodes, recipe.race.challenger, recipe.race.baseline) for seed, nodes in results.items()]


def _lap(recipe: Recipe, seed: int, nodes: Mapping[str, NodeResult], challenger: str, baseline: str) -> Lap:
    ours, theirs = nodes[challenger], nodes[baseline]
    our_past = _past(recipe, nodes, challenger)
    their_past = _past(recipe, nodes, baseline)
    our_curve, their_curve = _total(ours, our_past), _total(theirs, their_past)
    target = theirs.metrics["eval_loss"]
    equal = min(our_curve[-1]["flops"], their_curve[-1]["flops"])
    return Lap(
        seed=seed,
        baseline_loss=target,
        challenger_loss=ours.metrics["eval_loss"],
        baseline_flops=their_curve[-1]["flops"],
        challenger_flops=our_curve[-1]["flops"],
        ancestors_flops=our_past["flops"],
        baseline_seconds=their_curve[-1]["seconds"],
        challenger_seconds=our_curve[-1]["seconds"],
        challenger_loss_at_equal_flops=loss_at(our_curve, equal),
        baseline_loss_at_equal_flops=loss_at(their_curve, equal),
        flops_to_baseline_loss=cost_to_reach(our_curve, target, "flops"),
        seconds_to_baseline_loss=cost_to_reach(our_curve, target, "seconds"),
        ancestors_seconds=our_past["seconds"],
    )


def cautions(recipe: Recipe, laps: Sequence[Lap]) -> list[str]:
    """What makes the comparison one-sided, a sentence each. A loss that is read from a curve before the
    learning rate has fallen is higher than that of a run of that length, which ends with a low rate.
    """
    assert recipe.race is not None
    falls = {side: _falls(recipe, getattr(recipe.race, side)) for side in SIDES}
    ends = {side: mean(getattr(lap, f"{side}_flops") for lap in laps) for side in SIDES}
    shorter, longer = sorted(SIDES, key=ends.__getitem__)
    found = []
    if falls[longer] and ends[shorter] < (1 - EQUAL) * ends[longer]:
        found.append(
            f"at equal compute the {longer} is read at {ends[shorter] / ends[longer]:.0%} of its compute, before its learning rate has "
            f"fallen; a run of that length would end lower, so the comparison favours the {shorter}. Give both the same compute"
        )
    if falls["challenger"] != falls["baseline"]:
        one, other = sorted(SIDES, key=falls.__getitem__)
        found.append(
            f"the learning rate of the {other} falls at its end, and that of the {one} does not, which favours the {other}. Give both "
            "the same `schedule` and `decay`"
        )
    early = any(
        lap.flops_to_baseline_loss is not None and lap.flops_to_baseline_loss < (1 - EQUAL) * lap.challenger_flops
        for lap in laps
    )
    if falls["challenger"] and early:
        found.append(
            "the saving is read from the challenger's curve before its learning rate has fallen; a run of that length would end lower, "
            "so the saving is at least that. Shorter challengers, or `decay` nodes, measure it"
        )
    return found


def _falls(recipe: Recipe, name: str) -> bool:
    """Whether a node's learning rate falls towards its end."""
    train = recipe.nodes[name].train
    return train is None or not train.is_stable


def ancestors_among(recipe: Recipe, nodes: Mapping[str, NodeResult], name: str) -> dict[str, NodeResult]:
    """The ancestors of a node among the results of one seed, by their names in the recipe (see
    `node.past`).
    """

    def load(own: str) -> NodeResult:
        parents = recipe.nodes[own].parents
        return replace(nodes[own], parents=parents, taken=dict(zip(parents, nodes[own].taken.values(), strict=False)))

    of_name = load(name)
    return past(of_name.parents, of_name.taken, load)


def _past(recipe: Recipe, nodes: Mapping[str, NodeResult], name: str) -> dict[str, float]:
    """The total cost of all ancestors of a node. Each counts once. If a decay branches off an ancestor, only
    its cost up to there counts.
    """
    ancestors = ancestors_among(recipe, nodes, name).values()
    return {"flops": sum(a.flops for a in ancestors), "seconds": sum(a.seconds for a in ancestors)}


def _total(node: NodeResult, past: Mapping[str, float]) -> list[dict[str, float]]:
    return [{**p, "flops": p["flops"] + past["flops"], "seconds": p["seconds"] + past["seconds"]} for p in node.curve]


def loss_at(curve: Sequence[Mapping[str, float]], flops: float) -> float:
    """The evaluation loss at a compute budget, interpolated linearly between evaluations."""
    for before, after in pairwise(curve):
        if before["flops"] <= flops <= after["flops"]:
            share = (flops - before["flops"]) / (after["flops"] - before["flops"])
            return before["eval_loss"] + share * (after["eval_loss"] - before["eval_loss"])
    return curve[0]["eval_loss"] if flops < curve[0]["flops"] else curve[-1]["eval_loss"]


def cost_to_reach(curve: Sequence[Mapping[str, float]], loss: float, cost: Cost) -> float | None:
    """The cost at which the curve first falls to `loss`, interpolated linearly between evaluations. None if
    it never does.
    """
    if curve[0]["eval_loss"] <= loss:
        return curve[0][cost]
    for before, after in pairwise(curve):
        if after["eval_loss"] <= loss:
            share = (before["eval_loss"] - loss) / (before["eval_loss"] - after["eval_loss"])
            return before[cost] + share * (after[cost] - before[cost])
    return None


def report(recipe: Recipe, laps: Sequence[Lap], machine: str) -> dict[str, Any]:
    """The whole race as plain data: every lap, and means with standard deviations over the seeds."""
    rows = {
        "baseline_loss": [lap.baseline_loss for lap in laps],
        "challenger_loss": [lap.challenger_loss for lap in laps],
        "challenger_minus_baseline_at_equal_flops": [
            lap.challenger_loss_at_equal_flops - lap.baseline_loss_at_equal_flops for lap in laps
        ],
        "saving": [lap.saving for lap in laps],
        "saving_if_parents_are_given": [lap.saving_if_parents_are_given for lap in laps],
        "time_saving": [lap.time_saving for lap in laps],
    }
    return {
        "cautions": cautions(recipe, laps),
        "machine": machine,
        "conventions": "FLOPs counted by torch.utils.flop_counter (forward and backward, embeddings free, causal mask not "
        "discounted); seconds are training steps only, on this machine, ratios within one run",
        "recipe": recipe.model_dump(by_alias=True, exclude_none=True),
        "summary": {name: _spread(values) for name, values in rows.items()},
        "laps": [asdict(lap) for lap in laps],
    }


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "mean": mean(known) if known else None,
        "std": stdev(known) if len(known) > 1 else None,
        "seeds": len(values),
        "reached": len(known),
    }
