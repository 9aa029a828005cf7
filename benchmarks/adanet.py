"""AdaNet on the paper's task (binary pairs of CIFAR-10, 154 features) and on scikit-learn's tables, beside tuned baselines.

    python benchmarks/adanet.py --small    # one CPU core, about half an hour
    python benchmarks/adanet.py --large    # all pairs, ten folds: a day of one core, or many of them with --pairs

Parts (`--parts`): `pairs` (../shared/data; skipped where that is not), `tables`. Folds as in the paper: fold i tests, fold i + 1
chooses the settings, the others train. The images here are lossy JPEGs, so the paper's numbers are shown beside ours and are not
to be reached exactly. Writes results/adanet.json after every pair; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import rgb_to_hsv
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parent))

import shared_data
from paired import say, summary

from meristem.adaptive import AdaNetClassifier
from meristem.checkpoints.write import write_json

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PAPER = {  # Table 1: AdaNet, logistic regression, network
    "deer-truck": (0.9372, 0.8997, 0.9213),
    "deer-horse": (0.8430, 0.7685, 0.8055),
    "automobile-truck": (0.8461, 0.7976, 0.8063),
    "cat-dog": (0.6924, 0.6664, 0.6595),
    "dog-horse": (0.8350, 0.7968, 0.8066),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "pairs": ["deer-truck", "deer-horse", "cat-dog"],
        "folds": 5,
        "steps": 2_000,
        "rounds": 8,
        "table_folds": 5,
    },
    "large": {"pairs": list(PAPER), "folds": 10, "steps": 10_000, "rounds": 30, "table_folds": 10},
}


def features(images: np.ndarray) -> np.ndarray:
    """154 numbers in [0, 1] for each image: 9 orientations of gradient in 4 x 4 cells, and a histogram of 10 hues."""
    grey = images.astype(float) @ [0.299, 0.587, 0.144]
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    right[:, :, :-1], down[:, :-1] = np.diff(grey, axis=2), np.diff(grey, axis=1)
    size, angle = np.hypot(right, down), np.degrees(np.arctan2(down, right + 1e-15)) + 90
    cells = []
    for number in range(9):
        inside = (angle >= 20 * number) & (angle < 20 * (number + 1))
        cells.append((size * inside).reshape(-1, 4, 8, 4, 8).mean((2, 4)).reshape(-1, 16))
    hue = rgb_to_hsv(images / 255.0)[..., 0].reshape(len(images), -1)
    hues = np.stack([np.histogram(row, 10, (0, 1), density=True)[0] for row in hue])
    joined = np.concatenate([*cells, hues], 1)
    low, high = joined.min(0), joined.max(0)
    return (joined - low) / np.where(high > low, high - low, 1)


def load_pairs(data: Any, pairs: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    parts = [data.jpegs("cifar10_jpeg", split) for split in ("train", "test")]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    sets = {}
    for pair in pairs:
        numbers = [NAMES.index(name) for name in pair.split("-")]
        chosen = np.isin(labels, numbers)
        order = np.random.default_rng(0).permutation(int(chosen.sum()))
        sets[pair] = features(images[chosen])[order], (labels[chosen] == numbers[1]).astype(int)[order]
    return sets


def sides(setting: dict[str, Any], seed: int) -> dict[str, list[Any]]:
    """The settings of each side; six each for those that are trained by gradient descent."""
    adanet = {"width": 150, "batch_size": 100, "max_steps": setting["steps"], "max_rounds": setting["rounds"],
              "min_improvement": 0.0, "patience": 10, "random_state": seed}  # fmt: skip
    network = {"batch_size": 100, "early_stopping": True, "n_iter_no_change": 10, "max_iter": 200, "random_state": seed}
    return {
        "AdaNet": [AdaNetClassifier(adanet_lambda=price, learning_rate=rate, **adanet)
                   for price in (1e-4, 1e-3, 1e-2) for rate in (1e-3, 5e-3)],
        "one-layer network": [make_pipeline(StandardScaler(), MLPClassifier((units,), learning_rate_init=rate, **network))
                              for units in (150, 512, 2048) for rate in (1e-3, 5e-3)],
        "logistic regression": [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
                                for c in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)],
    }  # fmt: skip


def pairs(setting: dict[str, Any], kept: dict[str, Any], save: Any) -> dict[str, Any]:
    data = shared_data.loader()
    if data is None:
        return {"skipped": "no ../shared/data"}
    for name, (x, y) in load_pairs(data, setting["pairs"]).items():
        if name in kept:
            continue
        parts = np.array_split(np.arange(len(x)), 10)
        valid, rows = parts[1], np.concatenate(parts[2:])
        chosen: dict[str, int] = {}
        for side, trials in sides(setting, 0).items():
            began = time.perf_counter()
            scores = [trial.fit(x[rows], y[rows]).score(x[valid], y[valid]) for trial in trials]
            chosen[side] = int(np.argmax(scores))
            say(name, side, [round(s, 4) for s in scores], f"{time.perf_counter() - began:.0f} s")
        result: dict[str, Any] = {side: [] for side in chosen}
        for fold in range(setting["folds"]):
            test = parts[fold]
            rows = np.concatenate([p for k, p in enumerate(parts) if k not in (fold, (fold + 1) % 10)])
            for side, trials in sides(setting, fold).items():
                began = time.perf_counter()
                model = trials[chosen[side]].fit(x[rows], y[rows])
                record = {"accuracy": model.score(x[test], y[test]), "seconds": time.perf_counter() - began}
                if isinstance(model, AdaNetClassifier):
                    layers = [block.depth for block in model.module_.blocks]
                    record |= {"parameters": model.num_parameters_, "blocks": len(layers), "depth": max(layers, default=0),
                               "units_used": [int((w != 0).any(1).sum()) for w in model.output_weights_],
                               "bound": model.generalization_bound(x[rows], y[rows])}  # fmt: skip
                result[side].append(record)
            say(name, fold, {side: round(r[-1]["accuracy"], 4) for side, r in result.items()})
        kept[name] = {"chosen": {s: repr(sides(setting, 0)[s][k]) for s, k in chosen.items()}, "folds": result,
                      "summary": summary({s: [r["accuracy"] for r in records] for s, records in result.items()}, "AdaNet"),
                      "paper": dict(zip(("AdaNet", "logistic regression", "one-layer network"), PAPER[name], strict=True))}  # fmt: skip
        save(kept)
    return kept


def tables(setting: dict[str, Any], kept: dict[str, Any], save: Any) -> dict[str, Any]:
    """Five-fold accuracy with each side's settings chosen on a fifth of the training rows, six settings each."""
    sets = {"breast_cancer": load_breast_cancer(), "wine": load_wine(), "digits": load_digits()}
    for name, bunch in sets.items():
        if name in kept:
            continue
        x, y = bunch.data, bunch.target
        scores: dict[str, list[float]] = {}
        folds = StratifiedKFold(setting["table_folds"], shuffle=True, random_state=0)
        for fold, (rows, test) in enumerate(folds.split(x, y)):
            draw = np.random.default_rng(fold).permutation(rows)
            valid, inner = draw[: len(draw) // 5], draw[len(draw) // 5 :]
            network = {
                "n_iter_no_change": 20,
                "max_iter": 500,
                "random_state": fold,
            }  # a held-out part would be too small
            candidates = {
                "AdaNet": [AdaNetClassifier(adanet_lambda=price, width=width, random_state=fold)
                           for price in (1e-4, 1e-3, 1e-2) for width in (16, 64)],
                "MLP": [make_pipeline(StandardScaler(), MLPClassifier(units, learning_rate_init=rate, **network))
                        for units in ((32,), (128,), (64, 64)) for rate in (1e-3, 5e-3)],
                "logistic regression": [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
                                        for c in (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)],
                "gradient boosting": [HistGradientBoostingClassifier(learning_rate=rate, max_leaf_nodes=leaves, random_state=fold)
                                      for rate in (0.03, 0.1, 0.3) for leaves in (7, 31)],
            }  # fmt: skip
            for side, trials in candidates.items():
                best = trials[int(np.argmax([t.fit(x[inner], y[inner]).score(x[valid], y[valid]) for t in trials]))]
                scores.setdefault(side, []).append(float(best.fit(x[rows], y[rows]).score(x[test], y[test])))
            say(name, fold, {side: round(values[-1], 4) for side, values in scores.items()})
        kept[name] = {"scores": scores, "summary": summary(scores, "AdaNet")}
        save(kept)
    return kept


PARTS = {"pairs": pairs, "tables": tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", dest="setting", action="store_const", const="small", default="small")
    size.add_argument("--large", dest="setting", action="store_const", const="large")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--pairs", help="comma-separated, instead of the setting's")
    chosen = parser.parse_args()
    setting = dict(SETTINGS[chosen.setting])
    if chosen.pairs:
        setting["pairs"] = chosen.pairs.split(",")
    out = ROOT / "results" / ("adanet.json" if chosen.setting == "small" else "adanet_large.json")
    result = json.loads(out.read_text()) if out.exists() else {}
    result |= {"setting": setting, "machine": platform.platform(), "torch": torch.__version__}
    for part in chosen.parts.split(","):
        PARTS[part](
            setting, result.setdefault(part, {}), lambda kept, part=part: write_json(out, {**result, part: kept})
        )
    write_json(out, result)


if __name__ == "__main__":
    main()
