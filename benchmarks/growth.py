"""Which growth should I use? Every method against training from scratch, at the same tuning effort, over several seeds.

    python benchmarks/growth.py --small                                 # one CPU core, about 100 minutes, Python's own sources
    python benchmarks/growth.py --small --data python_peps --name growth_peps   # a text of ../shared/data
    python benchmarks/growth.py --large                                 # one GPU

The target is one network. Width methods reach it from a network of half its width, depth methods from one of half its
depth; both small networks cost about the same, and their cost counts. Every side, scratch and the small networks included,
has its learning rate found by the same search on the first seed: two rates, then factors of two onwards in the better
direction until the loss rises again. Resumable: what is done is not done again. Writes results/growth.json and .png.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from support import shared_data
from support.picture import picture
from support.statistics import deviation
from support.trained import ROOT, best_rate, llama, total_curve

WIDE = {"width": 2, "optimizer": "carry"}
DEEP = {"optimizer": "carry"}
METHODS: dict[str, dict[str, Any]] = {
    "hypercloning": {"from": "narrow", "method": "hypercloning", "noise": 0.1, **WIDE},
    "net2net": {"from": "narrow", "method": "net2net", "noise": 0.1, **WIDE},
    "aki": {"from": "narrow", "method": "aki", "duplication": "cyclic", **WIDE},
    "lemon": {"from": "narrow", "method": "lemon", **WIDE},
    "zero_padding": {"from": "narrow", "method": "zero_padding", **WIDE},
    "ligo": {"from": "narrow", "method": "ligo", "width": 2, "steps": 60, "learning_rate": 3e-4},
    "stacking": {"from": "shallow", "method": "stacking", "depth": 2, **DEEP},
    "interpolation": {"from": "shallow", "method": "stacking", "order": "interpolate", "depth": 2, **DEEP},
    "gradual_stacking": {"from": "shallow", "method": ["gradual_stacking"] * 2, "layers": 1, **DEEP},
    "midas": {"from": "shallow", "method": ["midas"] * 2, "layers": 1, **DEEP},
    "identity_blocks": {"from": "shallow", "method": "identity_blocks", "depth": 2, **DEEP},
}
SMALL = ("narrow", "shallow")
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "sequence_length": 128,
        "narrow": llama(96, 4, 4),
        "shallow": llama(192, 2, 8),
        "target": llama(192, 4, 8),
        "tokens": {"narrow": 500_000, "shallow": 250_000, "grown": 180_000, "scratch": 500_000},
        "batch_size": 4,
        "trainer": {},
    },
    "large": {
        "sequence_length": 512,
        "narrow": llama(512, 12, 8),
        "shallow": llama(1024, 6, 16),
        "target": llama(1024, 12, 16),
        "tokens": {"narrow": 60_000_000, "shallow": 30_000_000, "grown": 30_000_000, "scratch": 80_000_000},
        "batch_size": 64,
        "trainer": {"bf16": True},
    },
}


def recipe(setting: dict[str, Any], data: str, side: str, rates: dict[str, float], seed: int) -> dict[str, Any]:
    """One side as a recipe: a network from random numbers, or small -> grown -> trained on. `rates` names its rates."""

    def train(tokens: str, side: str, **more: Any) -> dict[str, Any]:
        common = {"batch_size": setting["batch_size"], "trainer": setting["trainer"], "evaluations": 12}
        return {"train": {"tokens": setting["tokens"][tokens], "learning_rate": rates[side], **common, **more}}

    stable = {"schedule": "constant_with_warmup", "warmup": 0.03}
    if side == "scratch":
        nodes = {"trained": train("scratch", side, model=setting["target"])}
    elif side in SMALL:
        nodes = {side: train(side, side, model=setting[side], **stable)}
    else:
        parent = METHODS[side]["from"]
        carried = METHODS[side].get("optimizer") == "carry"
        after = {"scale_learning_rate": True, "warmup": 0.0} if carried else {}
        nodes = {
            parent: train(parent, parent, model=setting[parent], **stable),
            side: {"grow": METHODS[side]},
            "trained": train("grown", side, **{"from": side}, **after),
        }
    header = {"source": data, "sequence_length": setting["sequence_length"], "eval_sequences": 96}
    return {"data": header, "seeds": [seed], "nodes": nodes}


def measure(
    setting: dict[str, Any], data: str, side: str, rates: dict[str, float], seeds: list[int], out: Path
) -> dict[str, Any]:
    """Find the side's rate on the first seed, note it in `rates`, then run the other seeds with it."""
    from meristem.recipes import run
    from meristem.recipes.specs.schema import parse_recipe

    def curve(rate: float, seed: int) -> list[dict[str, float]]:
        specification = recipe(setting, data, side, {**rates, side: rate}, seed)
        return total_curve(run(parse_recipe(specification), out)[seed])

    rates[side], tried = best_rate(lambda rate: curve(rate, seeds[0])[-1]["eval_loss"])
    curves = [curve(rates[side], seed) for seed in seeds]
    return {"learning_rate": rates[side], "search": tried, "curves": curves}


def compare(sides: dict[str, dict[str, Any]], seeds: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each method: loss right after growth, loss at equal compute, and compute saved to scratch's final loss."""
    from meristem.recipes.race import cost_to_reach, loss_at

    scratch = sides["scratch"]["curves"]
    for side, measured in sides.items():
        if side == "scratch" or side in SMALL:
            continue
        gaps, savings = [], []
        for ours, theirs in zip(measured["curves"], scratch, strict=True):
            gaps.append(ours[-1]["eval_loss"] - loss_at(theirs, ours[-1]["flops"]))
            reached = cost_to_reach(ours, theirs[-1]["eval_loss"], "flops")
            savings.append(None if reached is None else 1 - reached / theirs[-1]["flops"])
        known = [s for s in savings if s is not None]
        yield (
            side,
            {
                "learning_rate": measured["learning_rate"],
                "loss_after_growth": mean(c[0]["eval_loss"] for c in measured["curves"]),
                "final_loss": mean(c[-1]["eval_loss"] for c in measured["curves"]),
                "gap_to_scratch_at_equal_compute": mean(gaps),
                "gap_std": deviation(gaps),
                "compute_saved_to_scratchs_final_loss": mean(known) if known else None,
                "seeds_that_reached_it": f"{len(known)} of {len(seeds)}",
            },
        )


def draw(sides: dict[str, dict[str, Any]], file: Path) -> None:
    with picture(file, figsize=(8, 5)) as axes:
        shown = {side: measured for side, measured in sides.items() if side not in SMALL}
        for number, (side, measured) in enumerate(shown.items()):
            curves = measured["curves"]
            flops = [mean(c[i]["flops"] for c in curves) / 1e12 for i in range(len(curves[0]))]
            losses = [mean(c[i]["eval_loss"] for c in curves) for i in range(len(curves[0]))]
            style = {"color": f"C{number % 10}", "linestyle": "-" if number <= 10 else "--"}
            style = {"color": "black", "linewidth": 2} if side == "scratch" else style
            axes.plot(flops, losses, label=side, **style)
        lowest = min(c[-1]["eval_loss"] for m in shown.values() for c in m["curves"])
        axes.set(xlabel="total compute, TFLOPs (small model included)", ylabel="evaluation loss, nats per token")
        axes.set_ylim(lowest - 0.05, lowest + 1.2)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="small")
    parser.add_argument("--large", dest="size", action="store_const", const="large")
    parser.add_argument("--data", default="python-stdlib")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", default=["scratch", *METHODS])
    parser.add_argument("--name", default="growth", help="of the files in results/")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "growth")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")

    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    setting, data, rates = SETTINGS[arguments.size], shared_data.text(arguments.data), {}
    sides = {s: measure(setting, data, s, rates, arguments.seeds, arguments.out) for s in (*SMALL, *arguments.sides)}
    table = dict(compare(sides, arguments.seeds))
    content = {"machine": machine(), "data": arguments.data, "seeds": arguments.seeds, "setting": setting}
    write_json(ROOT / "results" / f"{arguments.name}.json", {**content, "table": table, "sides": sides})
    draw(sides, ROOT / "results" / f"{arguments.name}.png")
    for side, row in table.items():
        print(side, row)


if __name__ == "__main__":
    main()
