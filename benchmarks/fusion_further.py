"""What can be done with fused networks: the rate at the junction, two checkpoints that are there, and a downstream task.

    python benchmarks/fusion.py --small && python benchmarks/fusion_further.py --small     # one CPU core, about 75 minutes
    python benchmarks/fusion_further.py --large

Parts (`--parts`): `junction` (the warm-up that `meristem diagnose` proposes, against a plain restart, a usual warm-up, and the parents'
last rate), `shakespeare` (the two character-level checkpoints of ../shared/data, fused) and `downstream` (fine-tuning of what
fusion.py's part t5 has trained; texts of ../shared/data). Rates come from fusion.py's searches, or from one of the same kind.
Resumable; writes into results/fusion.json.
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

from fusion import SETTINGS, Study
from support import shared_data
from support.statistics import deviation
from support.trained import ROOT, best_rate

BOUND = 0.1  # of the conflict per step, `meristem diagnose`'s default
LEFT = 0.1  # of the parents' rate, at their end
CHECKPOINTS = ("shakespeare-char-gpt2-A", "shakespeare-char-gpt2-B")
SHAKESPEARE = {"batch_size": 16, "evaluations": 4, "steps": 120, "scratch": 2}
DOWNSTREAM = "MPQA"  # phrases, whose polarity is asked for
TUNING = {"batch_size": 16, "examples": 24_000, "evaluations": 1, "warmup": 0.1}


def final(nodes: dict[str, Any], metric: str = "eval_loss") -> float:
    return list(nodes.values())[-1].metrics[metric]


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": mean(values), "std": deviation(values), "values": values}


def junction(content: dict[str, Any], size: str, seeds: list[int], out: Path) -> dict[str, Any]:
    """The same fused networks, trained on in four ways; for each setting of fusion.py."""
    from meristem.recipes.diagnose import diagnose
    from meristem.recipes.specs.schema import parse_recipe

    found: dict[str, Any] = {"bound": BOUND}
    for name in ("t5", "gpt"):
        study = Study(SETTINGS[size], name, out)
        rates = {side: entry["learning_rate"] for side, entry in content[name]["sides"].items()}
        decayed = {**study.common["trainer"], "lr_scheduler_type": "cosine_with_min_lr"}
        decayed["lr_scheduler_kwargs"] = {"min_lr_rate": LEFT}
        steps = round(study.examples["of_two"]) // study.common["batch_size"]
        own: dict[str, Any] = {"rate": rates["plain"], "rate_of_parents": rates["parent"], "steps": steps}
        arms: dict[str, list[Any]] = {"diagnosed": [], "restart": [], "usual_warmup": [], "old_rate": []}
        measured = []
        for seed in seeds:
            nodes = study.recipe("plain", rates, seed)["nodes"]
            for parent in "ab":
                nodes[parent]["train"] |= {"schedule": "cosine", "trainer": decayed}
            probe = parse_recipe({"data": study.data, "seeds": [seed], "nodes": nodes})
            (said,) = diagnose(probe, "fused", study.out, BOUND, study.common["batch_size"])
            measured.append({"rate": said.learning_rate, "warmup_steps": said.warmup["plain"], **vars(said.junction)})
            last = nodes.pop("plain")["train"]
            options = {
                "diagnosed": {"warmup": min(said.warmup["plain"] / steps, 0.9)},
                "restart": {"warmup": 0.0},
                "usual_warmup": {"warmup": 0.05},
                "old_rate": {"warmup": 0.0, "learning_rate": LEFT * rates["parent"]},
            }
            for arm, option in options.items():
                train = {"train": {**last, "evaluations": 12, **option}}
                arms[arm].append(study.run({"data": study.data, "seeds": [seed], "nodes": {**nodes, arm: train}}))
        own["measured"] = measured
        for arm, runs in arms.items():
            curves = [nodes[arm].curve for nodes in runs]
            own[arm] = {
                "final": spread([final(nodes) for nodes in runs]),
                "fused": [curve[0]["eval_loss"] for curve in curves],
                "highest": spread([max(point["eval_loss"] for point in curve) for curve in curves]),
                "minus_restart": spread([final(a) - final(b) for a, b in zip(runs, arms["restart"], strict=True)]),
                "curves": [[{k: p[k] for k in ("step", "eval_loss")} for p in curve] for curve in curves],
            }
            print(name, arm, own[arm]["final"], own[arm]["highest"], file=sys.stderr, flush=True)
        found[name] = own
    return found


def shakespeare(content: dict[str, Any], size: str, seeds: list[int], out: Path) -> dict[str, Any]:
    """Both checkpoints were trained on all of the text, so all of it is trained on here too, and its last part, which every side has
    seen, is what losses are of: the corpus is the text with that part once more behind it, where the split cuts."""
    from transformers import AutoConfig

    loader = shared_data.loader()
    if loader is None:
        return {"skipped": "no ../shared/data"}
    folders = [shared_data.FOLDER / "checkpoints" / name for name in CHECKPOINTS]
    text = loader.text("tinyshakespeare")
    file = out / "tinyshakespeare_and_its_end.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + text[-(len(text) // 19) :], encoding="utf-8")
    data = {"source": str(file), "tokenizer": str(folders[1]), "sequence_length": 64, "eval_sequences": 400}
    config = AutoConfig.from_pretrained(folders[1])
    entries = {
        "model_type": "gpt2",
        "n_embd": 2 * config.n_embd,
        "n_layer": config.n_layer,
        "n_head": 2 * config.n_head,
    }
    entries |= {"activation_function": config.activation_function, "tie_word_embeddings": config.tie_word_embeddings}
    entries |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    setting = {"trainer": SETTINGS[size]["trainer"], "shakespeare": {
        "data": data, "small": {**entries, "n_embd": config.n_embd, "n_head": config.n_head}, "large": entries,
        "examples": SHAKESPEARE["steps"] * SHAKESPEARE["batch_size"], "batch_size": SHAKESPEARE["batch_size"]}}  # fmt: skip
    study = Study(setting, "shakespeare", out)
    given = {name: {"checkpoint": {"source": str(folder)}} for name, folder in zip("ab", folders, strict=True)}
    parents = study.run({"data": data, "seeds": [0], "nodes": given})
    sides: dict[str, dict[str, Any]] = {
        "plain": {},
        "grouped": {"norm": "grouped"},
        "weighted": {"norm": "grouped", "weights": [0.1, 0.9]},
    }

    def recipe(side: str, rate: float, seed: int) -> dict[str, Any]:
        if side == "scratch":
            nodes = {side: study.train("scratch", rate, model=study.models["large"])}
            nodes[side]["train"]["examples"] *= SHAKESPEARE["scratch"]
        elif side == "better_parent":  # trained on, for as many FLOPs
            nodes = {"b": given["b"], side: study.train("small", rate, **{"from": "b"})}
        else:
            fused = {"fuse": {"from": ["a", "b"], **sides[side]}}
            nodes = {**given, "fused": fused, side: study.train("scratch", rate, **{"from": "fused"})}
        nodes[side]["train"]["evaluations"] = SHAKESPEARE["evaluations"]
        return {"data": data, "seeds": [seed], "nodes": nodes}

    found: dict[str, Any] = {"parents": {name: study.ensemble_loss([node]) for name, node in parents.items()}}
    found["mean_of_parents"] = study.ensemble_loss(list(parents.values()))
    found |= {"better_parent_loss": min(found["parents"].values()), "steps": SHAKESPEARE["steps"], "sides": {}}
    for side in (*sides, "better_parent", "scratch"):
        start = (6.25e-5, 1.25e-4) if side in ("grouped", "weighted") else (2.5e-4, 5e-4)
        rate, tried = best_rate(lambda rate, side=side: final(study.run(recipe(side, rate, seeds[0]))), start)
        runs = [study.run(recipe(side, rate, seed)) for seed in (seeds[:1] if side == "scratch" else seeds)]
        curves = [nodes[side].curve for nodes in runs]
        found["sides"][side] = {
            "learning_rate": rate,
            "search": tried,
            "flops": runs[0][side].flops,
            "at_start": curves[0][0]["eval_loss"],
            "final": spread([final(nodes) for nodes in runs]),
            "curves": [[{k: p[k] for k in ("step", "flops", "eval_loss")} for p in curve] for curve in curves],
        }
        print(side, found["sides"][side]["at_start"], found["sides"][side]["final"], file=sys.stderr, flush=True)
    return found


def downstream(content: dict[str, Any], size: str, seeds: list[int], out: Path) -> dict[str, Any]:
    """What part t5 has trained, tuned to answer with the class of a phrase: the best fused network, scratch, and random numbers."""
    loader = shared_data.loader()
    if loader is None:
        return {"skipped": "no ../shared/data"}
    study, sides = Study(SETTINGS[size], "t5", out), content["t5"]["sides"]
    rates = {side: entry["learning_rate"] for side, entry in sides.items()}
    best = min(("plain", "equalised", "grouped"), key=lambda side: mean(sides[side]["final"]))
    folder, share = classification(loader, out)
    data = {"task": "text-to-text", "source": str(folder), "sequence_length": 32, "target_length": 8}

    def recipe(side: str, rate: float, seed: int) -> dict[str, Any]:
        train = {"learning_rate": rate, **TUNING, "trainer": SETTINGS[size]["trainer"]}
        if side == "random":
            nodes = {"tuned": {"train": {"model": study.models["large"], **train}}}
        else:
            done = study.run(study.recipe(side, rates, seed))
            trained = study.model_of(list(done.values())[-1])
            nodes = {"pre": {"checkpoint": {"source": str(trained)}}, "tuned": {"train": {"from": "pre", **train}}}
        return {"data": data, "seeds": [seed], "nodes": nodes}

    found: dict[str, Any] = {"task": DOWNSTREAM, "fused": best, "tuning": TUNING, "share_of_larger_class": share}
    for side in (best, "scratch", "random"):
        rate, tried = best_rate(lambda rate, side=side: final(study.run(recipe(side, rate, seeds[0]))))
        runs = [study.run(recipe(side, rate, seed)) for seed in seeds]
        found[side] = {
            "learning_rate": rate,
            "search": tried,
            "accuracy": spread([final(nodes, "eval_accuracy") for nodes in runs]),
            "eval_loss": spread([final(nodes) for nodes in runs]),
        }
        print(side, found[side], file=sys.stderr, flush=True)
    return found


def classification(loader: Any, out: Path) -> tuple[Path, float]:
    """The task of ../shared/data as a folder that recipes read, its classes named; and the larger class's share of the held-out part."""
    folder, share = out / "pairs" / DOWNSTREAM, 0.0
    folder.mkdir(parents=True, exist_ok=True)
    for part, source in (("train", "train"), ("test", "dev")):
        rows = loader.tsv(f"{DOWNSTREAM}/{source}")
        lines = [json.dumps({"text": text.strip(), "label": ("bad", "good")[int(label)]}) for label, text in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        share = mean(label == "0" for label, _ in rows)
    return folder, max(share, 1 - share)


PARTS = {"junction": junction, "shakespeare": shakespeare, "downstream": downstream}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="small")
    parser.add_argument("--large", dest="size", action="store_const", const="large")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "fusion")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")

    from meristem.checkpoints.write import write_json

    file = ROOT / "results" / ("fusion.json" if arguments.size == "small" else "fusion_large.json")
    for own in arguments.parts:
        if not file.exists():
            sys.exit(f"{file} is not there; run fusion.py first")
        found = PARTS[own](
            json.loads(file.read_text()), arguments.size, arguments.seeds, arguments.out / arguments.size
        )
        write_json(file, {**json.loads(file.read_text()), own: found})


if __name__ == "__main__":
    main()
