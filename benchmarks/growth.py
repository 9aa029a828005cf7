"""Which growth should I use? Every method against training from scratch, at the same tuning effort, over several seeds.

    python benchmarks/growth.py --small                        # two CPU cores (about 45 minutes), Python's own sources
    python benchmarks/growth.py --small --data TEXT_FILE       # another text
    python benchmarks/growth.py --large                        # one GPU

The target is one network. Width methods reach it from a network of half its width, depth methods from one of half its
depth; both small networks cost about the same, and their cost counts. Every side, scratch included, has its learning rate
chosen from the same grid on seed 0. Writes results/growth.json and .png.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from hypercloning import ROOT, llama

WIDE = {"width": 2, "optimizer": "carry"}
DEEP = {"optimizer": "carry"}
METHODS: dict[str, dict[str, Any]] = {
    "hypercloning": {"from": "narrow", "method": "hypercloning", "noise": 0.1, **WIDE},
    "net2net": {"from": "narrow", "method": "net2net", "noise": 0.1, **WIDE},
    "aki": {"from": "narrow", "method": "aki", "duplication": "cyclic", **WIDE},
    "zero_padding": {"from": "narrow", "method": "zero_padding", **WIDE},
    "ligo": {"from": "narrow", "method": "ligo", "width": 2, "steps": 60},
    "stacking": {"from": "shallow", "method": "stacking", "depth": 2, **DEEP},
    "interpolation": {"from": "shallow", "method": "stacking", "order": "interpolate", "depth": 2, **DEEP},
    "midas": {"from": "shallow", "method": "midas", "layers": 2, **DEEP},
    "identity_blocks": {"from": "shallow", "method": "identity_blocks", "depth": 2, **DEEP},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "sequence_length": 128,
        "narrow": llama(64, 4, 4),
        "shallow": llama(128, 2, 8),
        "target": llama(128, 4, 8),
        "tokens": {"narrow": 700_000, "shallow": 350_000, "grown": 300_000, "scratch": 800_000},
        "small_rate": 4e-3,
        "rates": (1e-3, 3e-3),
        "batch_size": 8,
        "trainer": {},
    },
    "large": {
        "sequence_length": 512,
        "narrow": llama(512, 12, 8),
        "shallow": llama(1024, 6, 16),
        "target": llama(1024, 12, 16),
        "tokens": {"narrow": 60_000_000, "shallow": 30_000_000, "grown": 30_000_000, "scratch": 80_000_000},
        "small_rate": 1e-3,
        "rates": (3e-4, 1e-3),
        "batch_size": 64,
        "trainer": {"bf16": True},
    },
}


def recipe(setting: dict[str, Any], data: str, side: str, rate: float, seed: int) -> dict[str, Any]:
    """One side of the comparison as a recipe: scratch, or small -> grown -> trained on."""

    def train(tokens: str, **more: Any) -> dict[str, Any]:
        common = {"batch_size": setting["batch_size"], "trainer": setting["trainer"], "evaluations": 12}
        return {"train": {"tokens": setting["tokens"][tokens], "learning_rate": rate, **common, **more}}

    header = {
        "data": {"source": data, "sequence_length": setting["sequence_length"], "eval_sequences": 96},
        "seeds": [seed],
    }
    if side == "scratch":
        return {**header, "nodes": {"trained": train("scratch", model=setting["target"])}}
    parent = METHODS[side]["from"]
    stable = {"schedule": "constant_with_warmup", "warmup": 0.03, "learning_rate": setting["small_rate"]}
    carried = METHODS[side].get("optimizer") == "carry"
    after = {"scale_learning_rate": True, "warmup": 0.0} if carried else {}
    nodes = {
        parent: train(parent, model=setting[parent], **stable),
        side: {"grow": METHODS[side]},
        "trained": train("grown", **{"from": side}, **after),
    }
    return {**header, "nodes": nodes}


def total_curve(nodes: dict[str, Any]) -> list[dict[str, float]]:
    """The last node's curve, with what came before it added."""
    *before, last = nodes.values()
    past = {cost: sum(getattr(node, cost) for node in before) for cost in ("flops", "seconds")}
    return [{**p, "flops": p["flops"] + past["flops"], "seconds": p["seconds"] + past["seconds"]} for p in last.curve]


def measure(setting: dict[str, Any], data: str, side: str, seeds: list[int], out: Path) -> dict[str, Any]:
    """Choose the rate on the first seed, then run the others with it."""
    from meristem.recipes import run
    from meristem.recipes.schema import parse_recipe

    def curve(rate: float, seed: int) -> list[dict[str, float]]:
        return total_curve(run(parse_recipe(recipe(setting, data, side, rate, seed)), out)[seed])

    grid = {rate: curve(rate, seeds[0]) for rate in setting["rates"]}
    best = min(grid, key=lambda rate: grid[rate][-1]["eval_loss"])
    curves = [grid[best], *(curve(best, seed) for seed in seeds[1:])]
    finals = {f"{rate:g}": grid[rate][-1]["eval_loss"] for rate in grid}
    return {"learning_rate": best, "grid": finals, "curves": curves}


def compare(sides: dict[str, dict[str, Any]], seeds: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each method: loss right after growth, loss at equal compute, and compute saved to scratch's final loss."""
    from meristem.recipes.race import cost_to_reach, loss_at

    scratch = sides["scratch"]["curves"]
    for side, measured in sides.items():
        if side == "scratch":
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
                "gap_std": stdev(gaps) if len(gaps) > 1 else None,
                "compute_saved_to_scratchs_final_loss": mean(known) if known else None,
                "seeds_that_reached_it": f"{len(known)} of {len(seeds)}",
            },
        )


def draw(sides: dict[str, dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, (side, measured) in enumerate(sides.items()):
        curves = measured["curves"]
        flops = [mean(c[i]["flops"] for c in curves) / 1e12 for i in range(len(curves[0]))]
        losses = [mean(c[i]["eval_loss"] for c in curves) for i in range(len(curves[0]))]
        style = {"color": "black", "linewidth": 2} if side == "scratch" else {"color": f"C{number % 10}"}
        axes.plot(flops, losses, label=side, **style)
    lowest = min(c[-1]["eval_loss"] for m in sides.values() for c in m["curves"])
    axes.set(xlabel="total compute, TFLOPs (small model included)", ylabel="evaluation loss, nats per token")
    axes.set_ylim(lowest - 0.05, lowest + 1.2)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)


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
    from meristem.cli.commands import machine

    setting = SETTINGS[arguments.size]
    sides = {s: measure(setting, arguments.data, s, arguments.seeds, arguments.out) for s in arguments.sides}
    table = dict(compare(sides, arguments.seeds))
    content = {"machine": machine(), "data": arguments.data, "seeds": arguments.seeds, "setting": setting}
    write_json(ROOT / "results" / f"{arguments.name}.json", {**content, "table": table, "sides": sides})
    draw(sides, ROOT / "results" / f"{arguments.name}.png")
    for side, row in table.items():
        print(side, row)


if __name__ == "__main__":
    main()
