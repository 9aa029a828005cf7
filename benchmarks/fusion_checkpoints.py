"""Two checkpoints that exist, fused and trained on for a little: what do weights of the mean change, and is the better parent alone ahead?

    python benchmarks/fusion_checkpoints.py    # one CPU core, about two hours

The character-level GPT-2 of ../shared/data (one run at two times). Sides: plain, grouped, grouped with weights 0.1 and 0.9, the better
parent trained on for as many FLOPs, and the fused network's size from random numbers for twice the FLOPs. What fusion saves where the
parents are trained too is a study: `python -m benchmarks run fusion`. Resumable. Writes results/fusion_checkpoints.json.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.studies.perform import perform_recipe
from benchmarks.studies.search import search
from benchmarks.support import shared_data
from benchmarks.support.statistics import deviation
from benchmarks.support.terminal import say

ROOT = Path(__file__).parents[1]
CHECKPOINTS = {"a": "shakespeare-char-gpt2-A", "b": "shakespeare-char-gpt2-B"}
BETTER, BATCH, EVALUATIONS = "b", 16, 4
FUSED: dict[str, dict[str, Any]] = {
    "plain": {}, "grouped": {"norm": "grouped"}, "weighted": {"norm": "grouped", "weights": [0.1, 0.9]},
}  # fmt: skip
RATES = {
    "plain": (2.5e-4, 5e-4), "grouped": (6.25e-5, 1.25e-4), "weighted": (6.25e-5, 1.25e-4), "better_parent": (2.5e-4, 5e-4),
    "scratch": (2.5e-4, 5e-4),
}  # fmt: skip


def corpus(out: Path) -> dict[str, Any]:
    """The recipe's data. Both checkpoints were trained on all of the text, so all of it trains here too, and its last part, which every
    side has seen, judges: the corpus is the text with that part once more at its end, where the split cuts."""
    text = shared_data.loader().text("tinyshakespeare")  # type: ignore[union-attr]
    file = out / "tinyshakespeare_and_its_end.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + text[-(len(text) // 19) :], encoding="utf-8")
    return {"source": str(file), "tokenizer": str(place(BETTER)), "sequence_length": 64, "eval_sequences": 400}


def place(name: str) -> Path:
    return shared_data.FOLDER / "checkpoints" / CHECKPOINTS[name]


def large() -> dict[str, Any]:
    """The config of twice the checkpoints' width, as a recipe's entries."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(place(BETTER))
    entries = {
        "model_type": "gpt2",
        "n_embd": 2 * config.n_embd,
        "n_layer": config.n_layer,
        "n_head": 2 * config.n_head,
    }
    entries |= {"activation_function": config.activation_function, "tie_word_embeddings": config.tie_word_embeddings}
    return entries | dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)


def ratio(data: dict[str, Any]) -> float:
    """FLOPs of the fused network's training over the parent's."""
    from meristem.anatomy.flops import training_flops
    from meristem.checkpoints import open_model
    from meristem.recipes.specs.data_specs import TextSpec
    from meristem.recipes.tasks import open_task

    task = open_task(TextSpec(**data))
    small = open_model(str(place(BETTER)))
    return training_flops(task.new_model(large(), 0), task.example()) / training_flops(small, task.example())


def nodes_of(side: str, rate: float, steps: int, dearer: float) -> dict[str, Any]:
    """The recipe's nodes; the last is the side's."""
    given = {name: {"checkpoint": {"source": str(place(name))}} for name in CHECKPOINTS}

    def train(factor: float, **more: Any) -> dict[str, Any]:
        own = {"examples": round(factor * steps * BATCH), "learning_rate": rate, "batch_size": BATCH}
        return {"train": {**own, "evaluations": EVALUATIONS, **more}}

    if side == "scratch":
        return {side: train(2, model=large())}
    if side == "better_parent":
        return {BETTER: given[BETTER], side: train(dearer, **{"from": BETTER})}
    return {**given, "fused": {"fuse": {"from": list(given), **FUSED[side]}}, side: train(1, **{"from": "fused"})}


def measured(side: str, data: dict[str, Any], dearer: float, steps: int, seeds: list[int], out: Path) -> dict[str, Any]:
    """The side's tuned rate, its losses on the seeds, and its curves."""
    from meristem.recipes.node import load_result

    def result(rate: float, seed: int) -> Any:
        content = {"data": data, "seeds": [seed], "nodes": nodes_of(side, rate, steps, dearer)}
        jobs = perform_recipe(content, out, None, seed, "eval")
        return jobs and load_result(jobs[side].directory)

    def loss(rate: float) -> float:
        found = result(rate, seeds[0])
        return found.metrics["eval_loss"] if found else float("inf")

    rate = search(RATES[side], loss)
    found = [result(rate, seed) for seed in seeds]
    final = [own.metrics["eval_loss"] for own in found]
    curves = [[{key: point[key] for key in ("step", "flops", "eval_loss")} for point in own.curve] for own in found]
    spread = {"mean": mean(final), "std": deviation(final), "values": final}
    return {
        "learning_rate": rate,
        "flops": found[0].flops,
        "at_start": curves[0][0]["eval_loss"],
        "final": spread,
        "curves": curves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the small setting, which is the only one")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "fusion_checkpoints")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    if shared_data.loader() is None:
        print("the checkpoints lie in ../shared/data, which is not there")
        return
    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    data, content = corpus(arguments.out), {"machine": machine(), "steps": arguments.steps, "sides": {}}
    dearer = ratio(data)
    for side in RATES:
        seeds = arguments.seeds[:1] if side == "scratch" else arguments.seeds
        content["sides"][side] = measured(side, data, dearer, arguments.steps, seeds, arguments.out)
        say(f"{side}: {content['sides'][side]['at_start']:.4f}, {content['sides'][side]['final']}")
        write_json(arguments.results / "fusion_checkpoints.json", content)


if __name__ == "__main__":
    main()
