"""HyperCloning against training from scratch, and against the small model trained on: compute and time to the same loss.

    python benchmarks/hypercloning.py --small      # two CPU cores, the committed results (about 40 minutes)
    python benchmarks/hypercloning.py --large      # one GPU

Writes results/hypercloning.json and .png. `--tune` first runs the learning-rate grids of both sides (the same number of
rates for each, one seed) and prints them; their outcome stands in the settings below.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from support.trained import ROOT, llama

# Tokens, and the best learning rate of each side's grid (see `GRIDS`).
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "data": {"source": "python-stdlib", "sequence_length": 128, "eval_sequences": 96},
        "models": (llama(128, 4, 4), llama(256, 4, 8)),
        "tokens": {"small": 1_000_000, "challenger": 360_000, "scratch": 1_000_000, "small_alone": 2_150_000},
        "learning_rate": {"small": 1e-3, "challenger": 1e-3, "scratch": 5e-4, "small_alone": 1e-3},
        "batch_size": 8,
    },
    "large": {
        "data": {"source": "python-stdlib", "sequence_length": 512, "eval_sequences": 256},
        "models": (llama(512, 8, 8), llama(1024, 8, 16)),
        "tokens": {"small": 60_000_000, "challenger": 24_000_000, "scratch": 60_000_000, "small_alone": 140_000_000},
        "learning_rate": {"small": 1e-3, "challenger": 1e-3, "scratch": 5e-4, "small_alone": 1e-3},
        "batch_size": 64,
        "trainer": {"bf16": True},
    },
}
GRIDS = {"scratch": (1e-3, 5e-4, 2.5e-4), "challenger": (2e-3, 1e-3, 5e-4), "small_alone": (2e-3, 1e-3, 5e-4)}


def recipe(setting: dict[str, Any], seeds: list[int], rates: dict[str, float]) -> dict[str, Any]:
    """The recipe as plain data: small -> grown -> challenger, against scratch; and the small model alone as a control."""
    small, large = setting["models"]

    def train(name: str, **more: Any) -> dict[str, Any]:
        common = {"batch_size": setting["batch_size"], "trainer": setting.get("trainer", {})}
        return {"train": {"tokens": setting["tokens"][name], "learning_rate": rates[name], **common, **more}}

    return {
        "data": setting["data"],
        "seeds": seeds,
        "nodes": {
            "small": train("small", model=small, schedule="constant_with_warmup", warmup=0.03),
            "grown": {
                "grow": {"from": "small", "method": "hypercloning", "width": 2, "noise": 0.1, "optimizer": "carry"}
            },
            "challenger": train("challenger", **{"from": "grown"}, warmup=0.0, scale_learning_rate=True),
            "scratch": train("scratch", model=large),
            "small_alone": train("small_alone", model=small),
        },
        "race": {"challenger": "challenger", "baseline": "scratch"},
    }


def tune(setting: dict[str, Any], out: Path) -> None:
    from meristem.recipes import run
    from meristem.recipes.specs.schema import parse_recipe

    for side, rates in GRIDS.items():
        for rate in rates:
            content = recipe(setting, [0], {**setting["learning_rate"], side: rate})
            needed = parse_recipe({**content, "race": None}).ancestors(side)
            content = {**content, "race": None, "nodes": {name: content["nodes"][name] for name in needed}}
            result = run(parse_recipe(content), out)[0][side]
            print(f"{side} at {rate:g}: {result.metrics['eval_loss']:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="small")
    parser.add_argument("--large", dest="size", action="store_const", const="large")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "hypercloning")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    setting, out = SETTINGS[arguments.size], arguments.out / arguments.size
    if arguments.tune:
        tune(setting, out)
        return

    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine
    from meristem.recipes import race, run
    from meristem.recipes.figure import draw_race
    from meristem.recipes.race import loss_at, report
    from meristem.recipes.specs.schema import parse_recipe

    content = recipe(setting, arguments.seeds, setting["learning_rate"])
    alone = content["nodes"].pop("small_alone")
    parsed = parse_recipe(content)
    results = run(parsed, out)
    laps = race(parsed, results)
    content = report(parsed, laps, machine())
    control = {"data": setting["data"], "seeds": arguments.seeds[:1], "nodes": {"small_alone": alone}}
    nodes = run(parse_recipe(control), out)[arguments.seeds[0]]
    content["control_small_model_trained_on"] = {
        "seed": arguments.seeds[0],
        "eval_loss": nodes["small_alone"].metrics["eval_loss"],
        "flops": nodes["small_alone"].flops,
        "loss_at_challengers_flops": loss_at(nodes["small_alone"].curve, laps[0].challenger_flops),
    }
    name = "hypercloning" if arguments.size == "small" else "hypercloning_large"
    write_json(ROOT / "results" / f"{name}.json", content)
    draw_race(parsed, results, ROOT / "results" / f"{name}.png")
    for key, value in content["summary"].items():
        print(key, value)


if __name__ == "__main__":
    main()
