"""From a side to a recipe: how long each stage trains for its share of the cost, and where each budget is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from benchmarks.studies.study import Setting, Side, Stage, deeper, layers_of

LEAST = 0.05  # share of a budget that the last stage has to train for before its decay


def warmup_share(warmup: float, steps: int) -> float:
    """A warm-up of so many optimizer steps, at most half of a node's, as the share of them that its recipe names."""
    return max(0.0, min(warmup, steps // 2) - 0.5) / max(1, steps)


@dataclass(frozen=True)
class Prices:
    """What a setting's networks cost.

    Args:
        tokens: FLOPs of training on one token, by network.
        layer: how much of that is one layer's.
        parameters: by network.
    """

    tokens: Mapping[str, float]
    layer: Mapping[str, float]
    parameters: Mapping[str, int]
    target: str

    @property
    def unit(self) -> float:
        """FLOPs of the target reading one token for each of its parameters."""
        return self.parameters[self.target] * self.tokens[self.target]

    def of_stage(self, stage: Stage, layers: int) -> float:
        """FLOPs of one token, on average over a run whose steps train parts of the network."""
        whole = self.tokens[stage.network]
        if "subnetwork" not in stage.train:
            return whole
        from meristem.recipes.specs.method_specs import SubnetworkSpec

        speedup = SubnetworkSpec(**stage.train["subnetwork"]).schedule(layers, 10_000, 0, ()).layer_speedup()
        return whole - layers * self.layer[stage.network] * (1 - 1 / speedup)

    @staticmethod
    def of(setting: Setting) -> Prices:
        """Counted on shapes, as the recipes count."""
        import torch

        from meristem.anatomy.flops import training_flops

        task = opened(setting)
        example = {key: value.to("meta") for key, value in task.example().items()}

        def count(entries: Mapping[str, Any]) -> tuple[float, int]:
            with torch.device("meta"):
                model = task.new_model(entries, 0)
            size = sum(parameter.numel() for parameter in model.parameters())
            return training_flops(model, example) / setting.sequence_length, size

        tokens, layer, parameters = {}, {}, {}
        for name, entries in setting.networks.items():
            tokens[name], parameters[name] = count(entries)
            layer[name] = count(deeper(entries))[0] - tokens[name]
        return Prices(tokens, layer, parameters, setting.target)


def data_of(setting: Setting) -> dict[str, Any]:
    """The recipe's data section."""
    own = {"task": setting.task, "source": _source(setting.data), "sequence_length": setting.sequence_length}
    return {**own, "eval_sequences": setting.eval_sequences}


def opened(setting: Setting) -> Any:
    """The data of that section."""
    from meristem.recipes.specs.data_specs import TextSpec
    from meristem.recipes.tasks.open import open_task

    return open_task(TextSpec(**data_of(setting)))


@cache
def _source(data: str) -> str:
    from benchmarks.support import shared_data

    return shared_data.text(data)


def is_readable(setting: Setting, side: Side, budget: float) -> bool:
    """Whether the side's last stage trains long enough before the decay of this budget."""
    return (1 - setting.decay - LEAST) * budget >= side.least


def recipe_of(
    setting: Setting, prices: Prices, side: Side, rates: Sequence[float], budgets: Sequence[float], seed: int
) -> tuple[dict[str, Any], dict[float, str]]:
    """The recipe of one side, and the node that each budget is read from.

    Args:
        rates: the learning rate of each stage.
    """
    nodes: dict[str, Any] = {}
    read: dict[float, str] = {}
    runs = [(f"_{budget:g}", [budget], budget) for budget in budgets] if side.whole else [("", budgets, 1.0)]
    for suffix, own, scale in runs:
        plan = _Plan(setting, prices, rates, suffix)
        for number, stage in enumerate(side.stages[:-1]):
            assert stage.until is not None
            plan.stage(number, stage, stage.until * scale)
        read |= plan.whole(side.stages[-1], own[0], side.average) if side.whole else plan.branches(side.stages[-1], own)
        nodes |= plan.nodes
    return {"data": data_of(setting), "seeds": [seed], "nodes": nodes}, read


class _Plan:
    """The nodes so far, the name of the last, and what it has cost."""

    def __init__(self, setting: Setting, prices: Prices, rates: Sequence[float], suffix: str) -> None:
        self.setting, self.prices, self.rates, self.suffix = setting, prices, rates, suffix
        self.nodes: dict[str, Any] = {}
        self.last: list[str] = []
        self.spent = 0.0  # units

    def stage(self, number: int, stage: Stage, until: float) -> None:
        """One that ends with its learning rate where it is."""
        origin = self._made(number, stage)
        tokens = self._tokens(stage, until - self.spent) / stage.members
        names = [f"stage{number}{self.suffix}" + f"-{m}" * (stage.members > 1) for m in range(stage.members)]
        for member, name in enumerate(names):
            more = {"seed": member} if stage.members > 1 else {}
            self.nodes[name] = self._train(number, stage, origin, self._whole_steps(tokens), {"decay": 0.0, **more})
        self.last, self.spent = names, until

    def branches(self, stage: Stage, budgets: Sequence[float]) -> dict[float, str]:
        """One stable run, and a decay for each budget."""
        number, decay, read = len(self.rates) - 1, self.setting.decay, {}
        origin = self._made(number, stage)
        at = {b: self._whole_steps(self._tokens(stage, (1 - decay) * b - self.spent)) for b in budgets}
        self.nodes["run"] = self._train(number, stage, origin, max(at.values()), {"decay": 0.0})
        for budget in budgets:
            read[budget] = f"at{budget:g}"
            length = self._whole_steps(self._tokens(stage, decay * budget))
            own = {"from": "run", "at": at[budget], "tokens": length, "evaluations": 1}
            self.nodes[read[budget]] = {"decay": own}
        return read

    def whole(self, stage: Stage, budget: float, average: int = 0) -> dict[float, str]:
        """A run with its own decay, or the mean of its last checkpoints; of several members, the mean of their answers."""
        number = len(self.rates) - 1
        origin = self._made(number, stage)
        tokens = self._whole_steps(self._tokens(stage, budget - self.spent) / stage.members)
        share = {"decay": round(self.setting.decay * budget / (budget - self.spent), 6)}
        if average:
            assert stage.members == 1, "members are averaged by what they answer, and not by their weights"
            parts = round(average * tokens / self._tokens(stage, self.setting.decay * budget))
            every = -(-tokens // self._step // parts) * self._step  # rounded up: the last part ends with the run
            more = {"decay": 0.0, "keep_every": every}
            self.nodes[run := f"run{self.suffix}"] = self._train(number, stage, origin, tokens, more)
            self.nodes[mean := f"mean{self.suffix}"] = {"average": {"from": run, "last": average, "weights": "1-sqrt"}}
            return {budget: mean}
        if stage.members == 1:
            self.nodes[name := f"run{self.suffix}"] = self._train(number, stage, origin, tokens, share)
            return {budget: name}
        names = [f"run{self.suffix}-{member}" for member in range(stage.members)]
        for member, name in enumerate(names):
            self.nodes[name] = self._train(number, stage, origin, tokens, {**share, "seed": member})
        self.nodes[mean := f"mean{self.suffix}"] = {"ensemble": {"from": names, "mixture": "mean"}}
        return {budget: mean}

    def _made(self, number: int, stage: Stage) -> dict[str, Any]:
        """Where a stage's network comes from."""
        if stage.make is None:
            return {"model": dict(self.setting.networks[stage.network])}
        ((kind, options),) = stage.make.items()
        origin = self.last if kind == "fuse" else self.last[0]
        if kind == "fuse" and len(self.last) == 1:
            origin = self.last * 2
        name = f"made{number}{self.suffix}"
        self.nodes[name] = {kind: {"from": origin, **options}}
        if "ligo" in options.get("method", ()):  # its fit costs too
            from meristem.recipes.nodes.make import FIT_BATCH

            examples = options.get("steps", 100) * FIT_BATCH
            self.spent += examples * self.setting.sequence_length * self.prices.tokens[stage.network] / self.prices.unit
        return {"from": name}

    def _train(self, number: int, stage: Stage, origin: dict[str, Any], tokens: int, more: dict[str, Any]) -> Any:
        steps = tokens // self._step
        fresh = stage.make is None or next(iter(stage.make.values())).get("optimizer") != "carry"
        warmup = warmup_share(self.setting.warmup, steps) if fresh else 0.0
        own = {"tokens": tokens, "learning_rate": self.rates[number], "batch_size": self.setting.batch_size}
        own |= {"schedule": "wsd", "warmup": warmup, "evaluations": 1, "checkpoint_every": max(self._step, tokens // 8)}
        return {"train": {**origin, **own, **more, "trainer": dict(self.setting.trainer), **stage.train}}

    def _tokens(self, stage: Stage, cost: float) -> float:
        if cost <= 0:
            raise ValueError(
                f"a budget is spent before {stage.network!r} begins to train (at a cost of {self.spent:g})"
            )
        layers = layers_of(self.setting.networks[stage.network])
        return cost * self.prices.unit / self.prices.of_stage(stage, layers)

    @property
    def _step(self) -> int:
        return self.setting.batch_size * self.setting.sequence_length

    def _whole_steps(self, tokens: float) -> int:
        return max(1, round(tokens / self._step)) * self._step


def asked(setting: Setting, side: Side, rates: Sequence[float], budget: float, seed: int, split: str) -> dict[str, Any]:
    """All that a result depends on, whatever else is run beside it."""
    stages = [
        {**asdict(stage), "network": dict(setting.networks[stage.network]), "rate": None, "cost": 1.0}
        for stage in side.stages
    ]
    own = {"stages": stages, "rates": list(rates), "whole": side.whole, "budget": budget, "seed": seed, "split": split}
    own |= {"average": side.average} if side.average else {}
    protocol = ("data", "task", "sequence_length", "eval_sequences", "batch_size", "warmup", "decay")
    own |= {key: getattr(setting, key) for key in protocol}
    return {**own, "trainer": dict(setting.trainer), "target": dict(setting.networks[setting.target])}
