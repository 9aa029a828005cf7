"""Train a part of the network at each step: does time really fall, and what does it cost in loss?

    python benchmarks/raptr.py --small    # one CPU core, about an hour: Python's own sources
    python benchmarks/raptr.py --large    # one GPU

Parts (`--parts`): `time`, step time against counted FLOPs for depths and widths; `loss`, evaluation loss against compute for
RAPTR, its relatives, stacking and dense controls, every side's learning rate found by the same search on the first seed; `masked`, the same
for a (pre-norm) BERT that finds masked bytes; and `boundary`, how far the output moves when one block is left out, against depth. Resumable.
With `--sides`, other sides stay as they were measured. Writes results/raptr.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from support import shared_data
from support.picture import picture
from support.statistics import deviation
from support.trained import ROOT, best_rate, llama, total_curve

SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "sequence_length": 128,
        "model": {"hidden_size": 96, "layers": 12, "heads": 4},
        "tokens": 300_000,
        "batch_size": 8,
        "rates": (1e-3, 2e-3),
        "trainer": {},
        "masked": {"sequence_length": 64, "tokens": 450_000},
        "time": {"hidden_size": 1024, "layers": 12, "heads": 16, "batch_size": 8, "repeats": 5, "device": "cpu"},
    },
    "large": {
        "sequence_length": 512,
        "model": {"hidden_size": 768, "layers": 12, "heads": 12},
        "tokens": 100_000_000,
        "batch_size": 64,
        "rates": (5e-4, 1e-3),
        "trainer": {"bf16": True},
        "masked": {},
        "time": {"hidden_size": 1024, "layers": 24, "heads": 16, "batch_size": 32, "repeats": 20, "device": "cuda"},
    },
}
TASKS = {"loss": "causal-lm", "masked": "masked-lm"}
STAGES = [6, 8, 10, 12]  # of 12: a third faster in the blocks
SUBNETWORKS: dict[str, dict[str, Any]] = {
    "raptr": {"stages": STAGES},
    "raptr_sqrt_gap": {"stages": STAGES, "scaling": "sqrt_gap"},
    "constant": {"stages": [9]},
    "reversed": {"stages": STAGES[::-1]},
    "progressive_layer_dropping": {"kind": "progressive_layer_dropping"},
}
STACKING = {  # method, layers at first, layers added each time, relative lengths of the stages
    "gradual_stacking": (6, 3, (1, 1, 1)),
    "midas": (3, 3, (1, 2, 3, 4)),
}
SIDES = ("full", *SUBNETWORKS, *STACKING, "full_short", "raptr_long", "dense_9")


def bert(hidden_size: int, layers: int, heads: int) -> dict[str, Any]:
    """A BERT with its norms before the layers: with 12 layers, the original does not leave byte frequencies behind in a small budget."""
    return {
        "model_type": "roberta-prelayernorm",
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,  # its default, 1, is what masks a byte here
        "max_position_embeddings": 1024,
    }


def model_of(setting: dict[str, Any], layers: int | None = None) -> dict[str, Any]:
    entries, kind = setting["model"], bert if setting["task"] == "masked-lm" else llama
    return kind(entries["hidden_size"], layers or entries["layers"], entries["heads"])


def data_of(setting: dict[str, Any]) -> dict[str, Any]:
    data = {
        "source": shared_data.text(setting.get("data", "python-stdlib")),
        "sequence_length": setting["sequence_length"],
    }
    return {"task": setting["task"], **data, "eval_sequences": 96}


def recipe(setting: dict[str, Any], side: str, rate: float, seed: int) -> dict[str, Any]:
    """One side. `full_short` and `raptr_long` are full training and RAPTR with the FLOPs of RAPTR and of full training."""

    def train(tokens: float, **more: Any) -> dict[str, Any]:
        common = {"batch_size": setting["batch_size"], "trainer": setting["trainer"], "evaluations": 8}
        return {"train": {"tokens": round(tokens), "learning_rate": rate, **common, **more}}

    tokens, layers = setting["tokens"], setting["model"]["layers"]
    share = flops_share(setting)  # of RAPTR's FLOPs in those of full training, head included
    if side in STACKING:
        first, added, lengths = STACKING[side]
        nodes: dict[str, Any] = {}
        origin: dict[str, Any] = {"model": model_of(setting, first)}
        for number, length in enumerate(lengths):
            last = number == len(lengths) - 1
            schedule = "cosine" if last else "constant_with_warmup"
            warmup = 0.0 if number else 0.05
            nodes[f"stage{number}"] = train(tokens * length / sum(lengths), **origin, schedule=schedule, warmup=warmup)
            if not last:
                nodes[f"grown{number}"] = {
                    "grow": {"from": f"stage{number}", "method": side, "layers": added, "optimizer": "carry"}
                }
                origin = {"from": f"grown{number}"}
    elif side in SUBNETWORKS:
        nodes = {"trained": train(tokens, model=model_of(setting), subnetwork=SUBNETWORKS[side])}
    elif side == "raptr_long":
        nodes = {"trained": train(tokens / share, model=model_of(setting), subnetwork=SUBNETWORKS["raptr"])}
    elif side == "full_short":
        nodes = {"trained": train(tokens * share, model=model_of(setting))}
    else:
        nodes = {"trained": train(tokens, model=model_of(setting, 9 if side == "dense_9" else layers))}
    return {"data": data_of(setting), "seeds": [seed], "nodes": nodes}


def flops_share(setting: dict[str, Any]) -> float:
    """RAPTR's FLOPs over full training's, at equal steps, counted."""
    if "share" not in setting:
        from meristem.recipes.specs.data_specs import TextSpec
        from meristem.recipes.tasks import open_task
        from meristem.subnetworks import SubnetworkSchedule
        from meristem.subnetworks.blocks import lists_of_blocks
        from meristem.subnetworks.flops import PathFlops

        task = open_task(TextSpec(**data_of(setting)))
        model = task.new_model(model_of(setting), 0)
        (blocks,) = lists_of_blocks(model)
        counter = PathFlops(model, task.example())
        schedule = SubnetworkSchedule(len(blocks.modules), 100, stages=STAGES)
        total = sum(counter.of({blocks.name: schedule.path(step)}) for step in range(100))
        setting["share"] = total / (100 * counter.of({}))
    return setting["share"]


def losses(
    setting: dict[str, Any], sides: list[str], seeds: list[int], out: Path, before: dict[str, Any]
) -> dict[str, Any]:
    """Every side's rate, search and curves, beside those measured before; then the table against full training."""
    from meristem.recipes import run
    from meristem.recipes.specs.schema import parse_recipe

    def curve(side: str, rate: float, seed: int) -> list[dict[str, float]]:
        return total_curve(run(parse_recipe(recipe(setting, side, rate, seed)), out)[seed])

    measured: dict[str, Any] = dict(before)
    for side in sides:
        rate, tried = best_rate(lambda rate, side=side: curve(side, rate, seeds[0])[-1]["eval_loss"], setting["rates"])
        curves = [curve(side, rate, seed) for seed in seeds]
        measured[side] = {
            "learning_rate": rate,
            "search": tried,
            "curves": curves,
        }
        print(setting["task"], side, measured[side]["search"], file=sys.stderr, flush=True)
    return {"table": {side: row(measured, side) for side in measured}, "sides": measured}


def row(measured: dict[str, Any], side: str) -> dict[str, Any]:
    """Final loss against full training's, seed by seed, and compute and time against its."""
    ours, full = measured[side]["curves"], measured["full"]["curves"]
    gaps = [a[-1]["eval_loss"] / b[-1]["eval_loss"] - 1 for a, b in zip(ours, full, strict=True)]
    return {
        "learning_rate": measured[side]["learning_rate"],
        "final_loss": mean(c[-1]["eval_loss"] for c in ours),
        "relative_gap_to_full": mean(gaps),
        "gap_std": deviation(gaps),
        "flops_to_full": mean(a[-1]["flops"] / b[-1]["flops"] for a, b in zip(ours, full, strict=True)),
        "seconds_to_full": mean(a[-1]["seconds"] / b[-1]["seconds"] for a, b in zip(ours, full, strict=True)),
    }


def times(setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Median step time (forward, backward, optimizer) along paths of several depths and widths, full steps in between."""
    import torch

    from meristem.recipes.tasks.language import causal_language_model, example_tokens
    from meristem.subnetworks import SubnetworkSchedule
    from meristem.subnetworks.blocks import lists_of_blocks
    from meristem.subnetworks.flops import PathFlops
    from meristem.subnetworks.gate import along

    own, length = setting["time"], setting["sequence_length"]
    device = torch.device(own["device"])
    model = (
        causal_language_model(llama(own["hidden_size"], own["layers"], own["heads"]), 256, length, 0).to(device).train()
    )
    (blocks,) = lists_of_blocks(model)
    counter = PathFlops(model, example_tokens(length, 256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as in transformers' Trainer
    tokens = torch.randint(0, 256, (own["batch_size"], length), device=device)

    def step(path: Any) -> float:
        began = time.perf_counter()
        with along(model, {blocks.name: path}):
            model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    layers = own["layers"]
    cases = [(layers * share // 12, width) for share, width in ((3, 1), (6, 1), (8, 1), (10, 1), (12, 0.25), (12, 0.5))]
    cases += [(layers, 0.75), (layers // 2, 0.5)]
    rows = []
    for depth, width in cases:
        schedule = SubnetworkSchedule(layers, own["repeats"], stages=[depth], widths=[width])
        paths = [schedule.path(i, blocks.name) for i in range(own["repeats"])]
        full = SubnetworkSchedule(layers, 1, stages=[layers]).path(0)
        step(full), step(paths[0])
        pairs = [(step(full), step(path)) for path in paths]
        predicted = counter.of({blocks.name: paths[0]}) / counter.of({})
        measured = median(b for _, b in pairs) / median(a for a, _ in pairs)
        rows.append({"depth": depth, "width": width, "flops_ratio": predicted, "time_ratio": measured,
                     "time_over_flops": measured / predicted, "full_step_seconds": median(a for a, _ in pairs)})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def boundary(depths: tuple[int, ...] = (4, 8, 16, 32, 64), width: int = 64) -> dict[str, Any]:
    """Mean relative change of the normed output when one block of a random network is left out, and its slope over depth.

    The paper's lemma: of order L^-1/2 with residual connections and norms, constant without either.
    """
    import math

    import torch

    from meristem.recipes.tasks.language import causal_language_model
    from meristem.subnetworks import Path as Route
    from meristem.subnetworks.blocks import lists_of_blocks
    from meristem.subnetworks.gate import along

    gaps = {}
    for depth in depths:
        model = causal_language_model(llama(width, depth, 4), 256, 64, 0).train()
        for parameter in model.parameters():  # updates as large as the stream
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        (blocks,) = lists_of_blocks(model)
        tokens = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            whole = model.model(input_ids=tokens).last_hidden_state
            moved = []
            for layer in range(depth):
                active = tuple(i != layer for i in range(depth))
                with along(model, {blocks.name: Route(active, (1.0,) * depth)}):
                    other = model.model(input_ids=tokens).last_hidden_state
                moved.append(float((other - whole).norm() / whole.norm()))
        gaps[depth] = mean(moved)
    x, y = [math.log(d) for d in gaps], [math.log(g) for g in gaps.values()]
    slope = sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True)) / sum((a - mean(x)) ** 2 for a in x)
    return {"relative_change": gaps, "slope": slope}


def draw(content: dict[str, Any], file: Path) -> None:
    with picture(file, 1, 3, figsize=(16, 4.5)) as (left, middle, right):
        for panel, part in ((left, "loss"), (middle, "masked")):
            for number, (side, measured) in enumerate(content.get(part, {}).get("sides", {}).items()):
                curves = measured["curves"]
                flops = [mean(c[i]["flops"] for c in curves) / 1e12 for i in range(len(curves[0]))]
                values = [mean(c[i]["eval_loss"] for c in curves) for i in range(len(curves[0]))]
                style = {"color": "black", "linewidth": 2} if side == "full" else {"color": f"C{number % 10}"}
                panel.plot(flops, values, label=side, **style)
            if part in content:
                lowest = min(r["final_loss"] for r in content[part]["table"].values())
                panel.set_ylim(lowest - 0.03, lowest + 0.8)
            panel.set(xlabel="compute, TFLOPs", ylabel="evaluation loss, nats per token", title=TASKS[part])
            panel.legend(fontsize=7)
        for width, marker in ((1, "o"), (None, "s")):
            rows = [r for r in content.get("time", []) if (r["width"] == 1) == (width == 1)]
            label = "depth" if width == 1 else "width, both"
            right.scatter([r["flops_ratio"] for r in rows], [r["time_ratio"] for r in rows], marker=marker, label=label)
        right.plot([0, 1], [0, 1], color="grey", linewidth=1)
        right.set(xlabel="FLOPs of a step / full step, counted", ylabel="time of a step / full step, measured")
        right.legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="small")
    parser.add_argument("--large", dest="size", action="store_const", const="large")
    parts = ["time", *TASKS, "boundary"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--sides", nargs="+", default=list(SIDES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "raptr")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")

    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    setting, file = SETTINGS[arguments.size], ROOT / "results" / "raptr.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    content |= {"machine": machine(), "size": arguments.size, "seeds": arguments.seeds}
    for part in arguments.parts:
        if part == "time":
            content["time"] = times(setting)
        elif part in TASKS:
            changes = setting["masked"] if part == "masked" else {}
            own, before = {**setting, **changes, "task": TASKS[part]}, content.get(part, {}).get("sides", {})
            content[part] = losses(own, arguments.sides, arguments.seeds, arguments.out, before)
        else:
            content["boundary"] = boundary()
        write_json(file, content)
    draw(content, file.with_suffix(".png"))
    print(json.dumps({k: v for k, v in content.items() if k in ("time", "boundary")}, indent=1))
    for part in TASKS:
        for side, entry in content.get(part, {}).get("table", {}).items():
            print(part, side, entry)


if __name__ == "__main__":
    main()
