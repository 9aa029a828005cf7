"""Deep Fusion against training from scratch, self-fusion, HyperCloning, an ensemble and the small network: at equal FLOPs.

    python benchmarks/fusion.py --small                  # two CPU cores, about two hours on each of them
    python benchmarks/fusion.py --large                  # one GPU

Parts (`--parts`): `t5` (span corruption, the paper's experiment in small) and `gpt` (decoders): every side's counted FLOPs, parents
included, are those of `scratch`; `scratch_short` has those of a fused network without its parents.
Every side's learning rate is found by the same search on the first seed. Movie reviews of ../shared/data, or Python's own sources where
that is not. Resumable. Writes results/fusion.json and .png; the parts that build on it are in fusion_further.py.
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
from support.trained import ROOT, best_rate, total_curve


def t5(d_model: int, layers: int, d_kv: int) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "d_model": d_model,
        "d_kv": d_kv,
        "num_heads": d_model // d_kv,
        "d_ff": 2 * d_model,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "dropout_rate": 0.0,
    }


def gpt2(n_embd: int, n_layer: int, head_size: int) -> dict[str, Any]:
    dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return {"model_type": "gpt2", "n_embd": n_embd, "n_layer": n_layer, "n_head": n_embd // head_size, **dropouts}


# `examples` of scratch; a parent is trained on `parent` times as many.
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "t5": {
            "data": {"task": "span-corruption", "sequence_length": 128, "eval_sequences": 192},
            "small": t5(64, 3, 32), "large": t5(128, 3, 32), "examples": 8_000, "batch_size": 16,
        },
        "gpt": {
            "data": {"sequence_length": 128, "eval_sequences": 96},
            "small": gpt2(64, 4, 32), "large": gpt2(128, 4, 32), "examples": 5_600, "batch_size": 8,
        },
        "trainer": {},
    },
    "large": {
        "t5": {
            "data": {"task": "span-corruption", "sequence_length": 512, "eval_sequences": 512},
            "small": t5(256, 8, 64), "large": t5(512, 8, 64), "examples": 300_000, "batch_size": 64,
        },
        "gpt": {
            "data": {"sequence_length": 512, "eval_sequences": 256},
            "small": gpt2(384, 12, 64), "large": gpt2(768, 12, 64), "examples": 200_000, "batch_size": 64,
        },
        "trainer": {"bf16": True, "dataloader_num_workers": 4},
    },
}  # fmt: skip
PARENT = 0.6
FUSED = ("plain", "equalised", "grouped", "self")
SIDES = ("parent", "scratch", "scratch_short", "small", "ensemble", *FUSED, "hypercloning")
BORROWED = {"scratch_short": "scratch", "ensemble": "small"}  # whose rate they take: the same network at another length
STABLE = {"schedule": "constant_with_warmup", "warmup": 0.03}


class Study:
    """One part: recipes of every side whose counted FLOPs are equal."""

    def __init__(self, setting: dict[str, Any], name: str, out: Path) -> None:
        own = setting[name]
        self.data = {"source": shared_data.reviews(ROOT / "runs" / "texts") or "python-stdlib", **own["data"]}
        self.models = {size: own[size] for size in ("small", "large")}
        self.common = {"batch_size": own["batch_size"], "trainer": setting["trainer"], "evaluations": 8}
        self.out, self.examples = out, self._equal_flops(own["examples"])

    def _equal_flops(self, examples: int) -> dict[str, float]:
        """Examples of every kind of node, from the counted FLOPs of one example in each network."""
        from meristem.anatomy.flops import training_flops

        task = self.task()
        share = training_flops(task.new_model(self.models["small"], 0), task.example()) / training_flops(
            task.new_model(self.models["large"], 0), task.example()
        )
        return {
            "scratch": examples,
            "parent": PARENT * examples,
            "of_two": examples * (1 - 2 * PARENT * share),
            "of_one": examples * (1 - PARENT * share),
            "small": examples / share,
            "ensemble": examples / share / 2,
        }

    def task(self) -> Any:
        from meristem.recipes.specs.data_specs import TextSpec
        from meristem.recipes.tasks import open_task

        return open_task(TextSpec(**self.data))

    def train(self, examples: str, rate: float, **more: Any) -> dict[str, Any]:
        return {"train": {"examples": round(self.examples[examples]), "learning_rate": rate, **self.common, **more}}

    def recipe(self, side: str, rates: dict[str, float], seed: int) -> dict[str, Any]:
        small, large, rate = {"model": self.models["small"]}, {"model": self.models["large"]}, rates[side]
        nodes = {
            name: self.train("parent", rates["parent"], **small, **STABLE, **({"seed": 1000} if name == "b" else {}))
            for name in ("a", "b")
        }
        carried = {"optimizer": "carry"}
        if side == "parent":
            nodes = {"a": nodes["a"]}
        elif side in ("scratch", "scratch_short"):
            nodes = {side: self.train("scratch" if side == "scratch" else "of_two", rate, **large)}
        elif side == "small":
            nodes = {side: self.train("small", rate, **small)}
        elif side == "ensemble":
            nodes = {name: self.train("ensemble", rate, **small, seed=1000 * i) for i, name in enumerate("ab")}
        elif side == "self":
            fused = {"fuse": {"from": ["a", "a"], **carried}}
            nodes = {"a": nodes["a"], "fused": fused, side: self.train("of_one", rate, **{"from": "fused"})}
        elif side == "hypercloning":
            grown = {"grow": {"from": "a", "method": "hypercloning", "width": 2, "noise": 0.1, **carried}}
            after = {"from": "grown", "scale_learning_rate": True}
            nodes = {"a": nodes["a"], "grown": grown, side: self.train("of_one", rate, **after)}
        else:
            fused = {"fuse": {"from": ["a", "b"], "norm": side, **carried}}
            nodes |= {"fused": fused, side: self.train("of_two", rate, **{"from": "fused"})}
        return {"data": self.data, "seeds": [seed], "nodes": nodes}

    def run(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """Results of the nodes, for the recipe's one seed."""
        from meristem.recipes import run
        from meristem.recipes.specs.schema import parse_recipe

        (found,) = run(parse_recipe(recipe), self.out).values()
        return found

    def model_of(self, result: Any) -> Path:
        from meristem.recipes.run import directory_of

        return directory_of(self.out, result) / "model"

    def ensemble_loss(self, results: list[Any]) -> float:
        """The evaluation loss of the mean of several networks' logits."""
        import torch
        from torch.nn.functional import cross_entropy
        from transformers import default_data_collator

        from meristem.checkpoints import open_model

        models = [open_model(str(self.model_of(result))).float().eval() for result in results]
        task, total = self.task(), 0.0
        examples = task.evaluation_set()
        with torch.no_grad():
            for start in range(0, len(examples), 16):
                rows = [examples[i] for i in range(start, min(start + 16, len(examples)))]
                batch = default_data_collator(rows)
                logits = sum(model(**batch).logits for model in models) / len(models)
                total += len(rows) * float(cross_entropy(*task.answers(logits, batch["labels"])))
        return total / len(examples)


def measured(study: Study, side: str, rates: dict[str, float], seeds: list[int]) -> dict[str, Any]:
    """Curves, FLOPs and final losses of one side over the seeds."""
    runs = [study.run(study.recipe(side, rates, seed)) for seed in seeds]
    found: dict[str, Any] = {
        "learning_rate": rates[side],
        "flops": [sum(node.flops for node in nodes.values()) for nodes in runs],
        "parameters": list(runs[0].values())[-1].parameters,
    }
    if side == "ensemble":
        found["final"] = [study.ensemble_loss([nodes["a"], nodes["b"]]) for nodes in runs]
        found["members"] = [[nodes[name].metrics["eval_loss"] for name in "ab"] for nodes in runs]
        return found
    found["curves"] = [total_curve(nodes) for nodes in runs]
    found["final"] = [curve[-1]["eval_loss"] for curve in found["curves"]]
    found["last_node_flops"] = [list(nodes.values())[-1].flops for nodes in runs]
    if side in FUSED:
        found["parents"] = [[nodes[name].metrics["eval_loss"] for name in "ab" if name in nodes] for nodes in runs]
        found["fused"] = [curve[0]["eval_loss"] for curve in found["curves"]]
        found["certificates"] = [nodes["fused"].details["certificate"] for nodes in runs]
    if side == "plain":
        found["mean_of_parents"] = [study.ensemble_loss([nodes["a"], nodes["b"]]) for nodes in runs]
    return found


def part(study: Study, seeds: list[int]) -> dict[str, Any]:
    rates: dict[str, float] = {}
    found: dict[str, Any] = {"data": study.data, "models": study.models, "examples": study.examples, "search": {}}
    for side in (s for s in SIDES if s not in BORROWED):

        def loss(rate: float, side: str = side) -> float:
            nodes = study.run(study.recipe(side, {**rates, side: rate}, seeds[0]))
            return list(nodes.values())[-1].metrics["eval_loss"]

        rates[side], found["search"][side] = best_rate(loss, (2e-3, 4e-3))
        print(side, found["search"][side], file=sys.stderr, flush=True)
    rates |= {side: rates[other] for side, other in BORROWED.items()}
    found["sides"] = {side: measured(study, side, rates, seeds) for side in SIDES}
    found["table"] = {side: row(found["sides"], side) for side in SIDES if side != "parent"}
    return found


def row(sides: dict[str, Any], side: str) -> dict[str, Any]:
    """A side against scratch, seed by seed: parents' cost counted; not counted; and compute saved to scratch's final loss, both."""
    from meristem.recipes.race import cost_to_reach

    ours, scratch, short = sides[side], sides["scratch"], sides["scratch_short"]
    gaps = [a - b for a, b in zip(ours["final"], scratch["final"], strict=True)]
    found: dict[str, Any] = {
        "eval_loss": mean(ours["final"]),
        "std": deviation(ours["final"]),
        "minus_scratch": mean(gaps),
        "gap_std": deviation(gaps),
        "flops_to_scratch": mean(a / b for a, b in zip(ours["flops"], scratch["flops"], strict=True)),
    }
    if side not in (*FUSED, "hypercloning"):
        return found
    if side in ("plain", "equalised", "grouped"):  # as long as scratch_short, if the parents are there anyway
        found["minus_scratch_parents_given"] = mean(a - b for a, b in zip(ours["final"], short["final"], strict=True))
    reached = [
        cost_to_reach(curve, goal, "flops") for curve, goal in zip(ours["curves"], scratch["final"], strict=True)
    ]
    found["seeds_that_reached_it"] = f"{sum(r is not None for r in reached)} of {len(reached)}"
    if all(r is not None for r in reached):
        parents = [a - b for a, b in zip(ours["flops"], ours["last_node_flops"], strict=True)]
        found["compute_saved"] = mean(1 - r / f for r, f in zip(reached, scratch["flops"], strict=True))
        found["compute_saved_parents_given"] = mean(
            1 - (r - p) / f for r, p, f in zip(reached, parents, scratch["flops"], strict=True)
        )
    return found


def draw(content: dict[str, Any], file: Path) -> None:
    names = [name for name in ("t5", "gpt") if name in content]
    with picture(file, 1, len(names), figsize=(6.5 * len(names), 4.8), squeeze=False) as panels:
        for panel, name in zip(panels[0], names, strict=True):
            sides = content[name]["sides"]
            for number, (side, entry) in enumerate((s, e) for s, e in sides.items() if "curves" in e and s != "parent"):
                curves = entry["curves"]
                flops = [mean(c[i]["flops"] for c in curves) / 1e12 for i in range(len(curves[0]))]
                losses = [mean(c[i]["eval_loss"] for c in curves) for i in range(len(curves[0]))]
                style = {"color": "black", "linewidth": 2} if side == "scratch" else {"color": f"C{number}"}
                panel.plot(flops, losses, label=side, **style)
            panel.axhline(mean(sides["ensemble"]["final"]), color="gray", linestyle=":", label="ensemble of two small")
            lowest = min(mean(entry["final"]) for entry in sides.values())
            panel.set_ylim(lowest - 0.05, lowest + 1.2)
            panel.set(
                xlabel="total compute, TFLOPs (parents included)", ylabel="evaluation loss, nats per byte", title=name
            )
            panel.grid(alpha=0.25)
            panel.legend(fontsize=8)


def main() -> None:
    names = ["t5", "gpt"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="small")
    parser.add_argument("--large", dest="size", action="store_const", const="large")
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "fusion")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")

    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    name = "fusion" if arguments.size == "small" else "fusion_large"
    file = ROOT / "results" / f"{name}.json"
    for own in arguments.parts:
        found = part(Study(SETTINGS[arguments.size], own, arguments.out / arguments.size), arguments.seeds)
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}  # another process may write too
        content |= {"machine": machine(), "size": arguments.size, "seeds": arguments.seeds, own: found}
        write_json(file, content)
        for side, entry in found["table"].items():
            print(own, side, entry, flush=True)
    draw(json.loads(file.read_text(encoding="utf-8")), file.with_suffix(".png"))


if __name__ == "__main__":
    main()
