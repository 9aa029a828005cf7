"""Deep Incubation against training end to end, stacking the same meta network, and the meta network alone: at equal FLOPs.

    python benchmarks/incubation.py --small                  # one CPU core, about 75 minutes
    python benchmarks/incubation.py --small --executor ray   # nodes on a cluster
    python benchmarks/incubation.py --large                  # one GPU

Parts (`--parts`): `text` (Python's own sources, a decoder), `digits` (scikit-learn's, a ViT; with 100, 50 and 25 % of the data),
`fashion_mnist` and `cifar10` (../shared/data; skipped where that is not). On each, every side's learning rate is found by the same search
on the first seed. The split of the budget is the paper's: the meta network 300 parts, each module 100,
fine-tuning 100, scaled so that counted FLOPs equal those of training end to end. Resumable. Writes results/incubation.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from support import shared_data
from support.picture import picture
from support.statistics import deviation
from support.trained import ROOT, best_rate, llama, total_curve

MODULES, PARTS = 4, (3, 1, 1)  # of the budget: meta network, each module, fine-tuning (300, 100, 100 epochs)


def vit(hidden_size: int, layers: int, heads: int, patch_size: int) -> dict[str, Any]:
    return {
        "model_type": "vit",
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch_size,
    }


# `examples` is the budget of training end to end; images also say how many of them there are to be.
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "layers": 12,
        "text": {
            "data": {"source": "python-stdlib", "sequence_length": 128, "eval_sequences": 96},
            "model": llama(64, 12, 4), "examples": 4_700, "batch_size": 8,
        },
        "digits": {"data": {"source": "digits"}, "model": vit(48, 12, 4, 2), "examples": 60_000, "batch_size": 64},
        "fashion_mnist": {
            "data": {"fraction": 0.1, "eval_examples": 2000}, "model": vit(48, 12, 4, 7), "examples": 60_000, "batch_size": 64,
        },
        "cifar10": {
            "data": {"fraction": 0.1, "eval_examples": 2000}, "model": vit(48, 12, 4, 8), "examples": 60_000, "batch_size": 64,
        },
        "trainer": {},
        "rates": (1e-3, 2e-3),
    },
    "large": {
        "layers": 12,
        "text": {
            "data": {"source": "python-stdlib", "sequence_length": 512, "eval_sequences": 256},
            "model": llama(512, 12, 8), "examples": 120_000, "batch_size": 64,
        },
        "digits": {"data": {"source": "digits"}, "model": vit(192, 12, 3, 2), "examples": 400_000, "batch_size": 256},
        "fashion_mnist": {
            "data": {"augment": ["crop", "flip"]}, "model": vit(192, 12, 3, 4), "examples": 6_000_000, "batch_size": 512,
        },
        "cifar10": {
            "data": {"augment": ["crop", "flip"]}, "model": vit(192, 12, 3, 4), "examples": 15_000_000, "batch_size": 512,
        },
        "trainer": {"bf16": True, "dataloader_num_workers": 8},
        "rates": (5e-4, 1e-3),
    },
}  # fmt: skip
SIDES = ("meta", "end_to_end", "stacked", "incubation", "incubation_clone")
FRACTIONS = (0.5, 0.25)


class Study:
    """One data set: recipes of every side whose counted FLOPs are equal."""

    def __init__(self, setting: dict[str, Any], name: str, out: Path, executor: Any, fraction: float = 1.0) -> None:
        own = setting[name]
        data, self.metric = dict(own["data"]), "eval_loss"
        if name != "text":
            whole = data.get("fraction", 1.0)
            source = data.get("source") or shared_data.images(name)
            data |= {"task": "image-classification", "source": source, "fraction": whole * fraction}
            self.metric = "eval_accuracy"
        self.data, self.model, self.out, self.executor = data, own["model"], out, executor
        self.common = {"batch_size": own["batch_size"], "trainer": setting["trainer"], "evaluations": 6}
        self.layers, self.examples = setting["layers"], own["examples"] * fraction
        self.plan = self._equal_flops()

    def _equal_flops(self) -> dict[str, float]:
        """Examples of every kind of node, from the counted FLOPs of one example in each."""
        from meristem.anatomy.flops import training_flops
        from meristem.incubation import divide, incubate
        from meristem.recipes.specs.data_specs import ImageSpec, TextSpec
        from meristem.recipes.tasks import open_task

        spec = ImageSpec(**self.data) if "task" in self.data else TextSpec(**self.data)
        task, division = open_task(spec), divide(self.layers, MODULES)
        meta = task.new_model(self.entries(MODULES), 0)
        large = training_flops(task.new_model(self.entries(self.layers), 0), task.example())
        small = training_flops(meta, task.example())
        hybrids = [training_flops(incubate(meta, division, i).model, task.example()) for i in range(MODULES)]
        budget = large * self.examples
        unit = budget / (PARTS[0] * small + PARTS[1] * sum(hybrids) + PARTS[2] * large)
        return {
            "end_to_end": self.examples,
            "meta_alone": budget / small,
            "meta": PARTS[0] * unit,
            "module": PARTS[1] * unit,
            "tuned": PARTS[2] * unit,
            "stacked": (budget - PARTS[0] * unit * small) / large,
        }

    def entries(self, layers: int) -> dict[str, Any]:
        return {**self.model, "num_hidden_layers": layers}

    def recipe(self, side: str, rates: dict[str, float], seed: int) -> dict[str, Any]:
        def train(examples: str, rate: float, **more: Any) -> dict[str, Any]:
            return {"train": {"examples": round(self.plan[examples]), "learning_rate": rate, **self.common, **more}}

        meta = train("meta", rates["meta"], model=self.entries(MODULES))
        rate = rates[side]
        if side == "meta":
            nodes = {"meta_alone": train("meta_alone", rate, model=self.entries(MODULES))}
        elif side == "end_to_end":
            nodes = {"end_to_end": train("end_to_end", rate, model=self.entries(self.layers))}
        elif side == "stacked":
            grown = {"grow": {"from": "meta", "method": "stacking", "depth": self.layers // MODULES}}
            nodes = {"meta": meta, "grown": grown, "stacked": train("stacked", rate, **{"from": "grown"})}
        else:
            start = "clone" if side == "incubation_clone" else "random"
            nodes, names = {"meta": meta}, [f"module{module}" for module in range(MODULES)]
            for module, name in enumerate(names):
                own = {"num_hidden_layers": self.layers, "modules": MODULES, "module": module, "start": start}
                nodes[name] = train("module", rate, **{"from": "meta"}, incubate=own)
            nodes["large"] = {"assemble": {"from": names}}
            nodes["tuned"] = train("tuned", rate, **{"from": "large"})
        return {"data": self.data, "seeds": [seed], "nodes": nodes}

    def run(self, side: str, rates: dict[str, float], seed: int) -> dict[str, Any]:
        from meristem.recipes import run
        from meristem.recipes.executors import build_executor
        from meristem.recipes.specs.schema import parse_recipe

        executor = build_executor(self.executor, {}) if self.executor else None
        return run(parse_recipe(self.recipe(side, rates, seed)), self.out, executor=executor)[seed]

    def badness(self, side: str, rates: dict[str, float], seed: int) -> float:
        """What the search for a learning rate makes small."""
        final = list(self.run(side, rates, seed).values())[-1].metrics
        return final["eval_loss"] if self.metric == "eval_loss" else -final["eval_accuracy"]


def measured(study: Study, side: str, rates: dict[str, float], seeds: list[int]) -> dict[str, Any]:
    """Final metrics, curves and costs of one side over the seeds; of the incubated ones also what modules and assembly gave."""
    runs = [study.run(side, rates, seed) for seed in seeds]
    found: dict[str, Any] = {
        "learning_rate": rates[side],
        "final": {m: [list(r.values())[-1].metrics[m] for r in runs] for m in list(runs[0].values())[-1].metrics},
        "curves": [total_curve(r) for r in runs],
        "parameters": list(runs[0].values())[-1].parameters,
    }
    for cost in ("flops", "seconds"):
        found[cost] = [sum(getattr(node, cost) for node in r.values()) for r in runs]
        found[f"critical_path_{cost}"] = [critical_path(r, cost) for r in runs]
    if "tuned" in runs[0]:
        found["meta"] = [r["meta"].metrics for r in runs]
        found["modules"] = [[r[f"module{i}"].metrics for i in range(MODULES)] for r in runs]
        kept = ("eval_loss", "eval_accuracy")
        found["assembled"] = [{m: r["tuned"].curve[0][m] for m in kept if m in r["tuned"].curve[0]} for r in runs]
    return found


def critical_path(nodes: dict[str, Any], cost: str) -> float:
    """The cost with one machine for each module: of several modules, the dearest counts."""
    modules = [getattr(node, cost) for name, node in nodes.items() if name.startswith("module")]
    return sum(getattr(n, cost) for name, n in nodes.items() if not name.startswith("module")) + max(modules, default=0)


def part(
    setting: dict[str, Any], name: str, seeds: list[int], out: Path, executor: Any, near: dict[str, float]
) -> dict[str, Any]:
    """All sides on one data set, each at the rate that a search on the first seed finds, beginning at `near` if that is known."""
    if name not in ("text", "digits") and shared_data.images(name) is None:
        return {"skipped": "no ../shared/data"}
    study, found, rates = Study(setting, name, out, executor), {"search": {}}, {}
    for side in SIDES:
        start = (near[side], 2 * near[side]) if near else setting["rates"]
        badness = lambda rate, side=side: study.badness(side, {**rates, side: rate}, seeds[0])  # noqa: E731
        rates[side], found["search"][side] = best_rate(badness, start)
        print(name, side, found["search"][side], file=sys.stderr, flush=True)
    found |= {"metric": study.metric, "sides": {side: measured(study, side, rates, seeds) for side in SIDES}}
    if name == "digits":
        found["fractions"] = {
            str(fraction): {
                side: measured(Study(setting, name, out, executor, fraction), side, rates, seeds)["final"]
                for side in SIDES
            }
            for fraction in FRACTIONS
        }
    found["table"] = {side: row(found["sides"], side, study.metric) for side in SIDES}
    return found


def row(sides: dict[str, Any], side: str, metric: str) -> dict[str, Any]:
    """Against training end to end: the metric, seed by seed; FLOPs; and the longest chain of FLOPs and seconds."""
    ours, theirs = sides[side], sides["end_to_end"]
    values = ours["final"][metric]
    gaps = [a - b for a, b in zip(values, theirs["final"][metric], strict=True)]
    ratio = {c: mean(a / b for a, b in zip(ours[c], theirs["flops" if "flops" in c else "seconds"], strict=True))
             for c in ("flops", "seconds", "critical_path_flops", "critical_path_seconds")}  # fmt: skip
    return {
        metric: mean(values),
        "std": deviation(values),
        "minus_end_to_end": mean(gaps),
        "gap_std": deviation(gaps),
        **{f"{cost}_to_end_to_end": value for cost, value in ratio.items()},
    }


def draw(content: dict[str, Any], file: Path) -> None:
    with picture(file, 1, 3, figsize=(15, 4.5)) as (left, middle, right):
        colours = {"end_to_end": "black", "meta": "tab:gray", "stacked": "tab:blue", "incubation": "tab:red",
                   "incubation_clone": "tab:orange"}  # fmt: skip
        text = content.get("text", {}).get("sides", {})
        for side, entry in text.items():
            curves = entry["curves"]
            flops = [mean(c[i]["flops"] for c in curves) / 1e12 for i in range(len(curves[0]))]
            left.plot(
                flops,
                [mean(c[i]["eval_loss"] for c in curves) for i in range(len(curves[0]))],
                color=colours[side],
                label=side,
            )
        if text:
            lowest = min(mean(entry["final"]["eval_loss"]) for entry in text.values())
            left.set_ylim(lowest - 0.05, lowest + 1.5)
            left.legend(fontsize=8)
        left.set(xlabel="compute, TFLOPs (all nodes)", ylabel="evaluation loss, nats per byte", title="text")
        names = [name for name in ("digits", "fashion_mnist", "cifar10") if "table" in content.get(name, {})]
        for i, side in enumerate(SIDES):
            for place, name in enumerate(names):
                entry = content[name]["table"][side]
                label = side if place == 0 else None
                middle.errorbar(
                    place + 0.1 * (i - 2),
                    entry["eval_accuracy"],
                    entry["std"] or 0,
                    fmt="o",
                    color=colours[side],
                    label=label,
                )
        middle.set_xticks(range(len(names)), names)
        middle.set(ylabel="accuracy", title="images, equal FLOPs")
        digits = content.get("digits", {})
        for side in SIDES if "fractions" in digits else ():
            shares = [100, *(100 * float(f) for f in digits["fractions"])]
            finals = [digits["sides"][side]["final"], *(digits["fractions"][f][side] for f in digits["fractions"])]
            values = [mean(final["eval_accuracy"]) for final in finals]
            right.plot(shares, values, "o-", color=colours[side], label=side)
        right.set(xlabel="share of the digits, %", ylabel="accuracy", title="less data, as many epochs")


def main() -> None:
    names = ["text", "digits", "fashion_mnist", "cifar10"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="small")
    parser.add_argument("--large", dest="size", action="store_const", const="large")
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--executor", choices=["local", "ray", "slurm"])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "incubation")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")

    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    name = "incubation" if arguments.size == "small" else "incubation_large"
    setting, file = SETTINGS[arguments.size], ROOT / "results" / f"{name}.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    content |= {"machine": machine(), "size": arguments.size, "seeds": arguments.seeds}
    for own in sorted(arguments.parts, key=names.index):
        rates = (
            {} if own in ("text", "digits") else {s: e["learning_rate"] for s, e in content["digits"]["sides"].items()}
        )
        content[own] = part(setting, own, arguments.seeds, arguments.out / arguments.size, arguments.executor, rates)
        write_json(file, content)
        for side, entry in content[own].get("table", {}).items():
            print(own, side, entry, flush=True)
    draw(content, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
