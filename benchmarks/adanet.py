"""AdaNet on the paper's task (binary pairs of CIFAR-10, 154 features) and on scikit-learn's tables, beside tuned baselines.

    python benchmarks/adanet.py --small    # one CPU core, five hours, most of them the pairs
    python benchmarks/adanet.py --large    # a day of one core, or many of them with --pairs

Parts (`--parts`): `pairs` (../shared/data; skipped where that is not), `tables`, `framework` (the TensorFlow framework, with `--framework-python`).
Of the ten parts of a pair, part 1 chooses the settings and never tests; where fold i tests, fold i + 1 is set aside, as in the paper. The images
here are lossy JPEGs, so the paper's numbers are shown beside ours and are not to be reached exactly. Writes results/adanet.json after every fold,
where what is there is not run again, and results/adanet.png.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parent))

from support import shared_data
from support.cifar_pairs import load_pairs
from support.picture import picture
from support.statistics import summary, t_test
from support.terminal import say

from meristem.adaptive import AdaNetClassifier
from meristem.checkpoints.write import write_json

ROOT = Path(__file__).resolve().parent.parent
PAPER = {  # Table 1: AdaNet, logistic regression, network
    "deer-truck": (0.9372, 0.8997, 0.9213),
    "deer-horse": (0.8430, 0.7685, 0.8055),
    "automobile-truck": (0.8461, 0.7976, 0.8063),
    "cat-dog": (0.6924, 0.6664, 0.6595),
    "dog-horse": (0.8350, 0.7968, 0.8066),
}
FOLDS = [0, 2, 3, 4, 5, 6, 7, 8, 9]  # part 1 chooses the settings
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "pairs": list(PAPER),
        "folds": FOLDS,
        "steps": 2_000,
        "rounds": 6,
        "table_folds": 5,
    },
    "large": {
        "pairs": list(PAPER),
        "folds": FOLDS,
        "steps": 10_000,
        "rounds": 30,
        "table_folds": 10,
    },
}


def deep_ensemble(scaler: Any, like: int, sizes: tuple[int, int, int], random_state: int, **options: Any) -> Any:
    """The mean of so many one-layer networks of `sizes` (inputs, units, outputs) as come nearest to `like` parameters, two at least."""
    inputs, units, outputs = sizes
    count = max(2, round(like / ((inputs + 1) * units + (units + 1) * outputs)))
    members = [(str(i), MLPClassifier((units,), random_state=1000 * i + random_state, **options)) for i in range(count)]
    return make_pipeline(scaler, VotingClassifier(members, voting="soft"))


def boosting(seed: int) -> list[Any]:
    """Six settings of gradient boosting on trees; it stops by a tenth of the rows from 10,000 rows on."""
    return [HistGradientBoostingClassifier(learning_rate=rate, max_leaf_nodes=leaves, random_state=seed)
            for rate in (0.03, 0.1, 0.3) for leaves in (7, 31)]  # fmt: skip


def sides(setting: dict[str, Any], seed: int, like: int) -> dict[str, list[Any]]:
    """The settings of each side, six each. An ensemble has as many members as come nearest to `like` parameters together.

    The first network is tuned as one would today; "the paper's network" is what the paper describes: plain SGD on features in [0, 1],
    batches of 100, at most 10,000 steps.
    """
    adanet = {"width": 150, "batch_size": 100, "max_steps": setting["steps"], "max_rounds": setting["rounds"],
              "min_improvement": 0.0, "patience": setting["steps"], "learning_rate": 1e-3,
              "max_depth": 2, "standardize": False, "random_state": seed}  # fmt: skip
    network = {"batch_size": 100, "early_stopping": True, "n_iter_no_change": 10, "max_iter": 200, "random_state": seed}
    plain = {
        "batch_size": 100,
        "solver": "sgd",
        "momentum": 0.0,
        "max_iter": 104,
        "n_iter_no_change": 104,
        "random_state": seed,
    }

    return {
        "AdaNet": [AdaNetClassifier(adanet_lambda=price, shrinkage=share, **adanet) for price in (2e-3, 4e-3) for share in (0.3, 1.0)],
        "AdaNet with shrinkage": [AdaNetClassifier(adanet_lambda=price, shrinkage=0.3, **adanet) for price in (2e-3, 4e-3)],
        "one-layer network": [make_pipeline(scaler, MLPClassifier((units,), learning_rate_init=rate, alpha=alpha, **network))
                              for scaler, units, rate, alpha in (
                                  (StandardScaler(), 512, 1e-3, 1e-4), (StandardScaler(), 2048, 1e-3, 1e-4),
                                  ("passthrough", 512, 1e-3, 1e-4), ("passthrough", 512, 1e-3, 1e-2),
                                  ("passthrough", 512, 5e-3, 1e-2), ("passthrough", 2048, 1e-3, 1e-4),
                                  ("passthrough", 2048, 1e-3, 1e-2), ("passthrough", 2048, 5e-3, 1e-4))],
        "the paper's network": [MLPClassifier((units,), learning_rate_init=rate, **plain)
                                for units in (512, 2048) for rate in (0.01, 0.03, 0.1)],
        "deep ensemble": [deep_ensemble(scaler, like, (154, units, 1), learning_rate_init=rate, **network)
                          for scaler in (StandardScaler(), "passthrough") for units in (150, 512) for rate in (1e-3, 5e-3)],
        "logistic regression": [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
                                for c in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)],
        "gradient boosting": boosting(seed),
    }  # fmt: skip


def pairs(setting: dict[str, Any], kept: dict[str, Any], save: Any) -> dict[str, Any]:
    data = shared_data.loader()
    if data is None:
        return {"skipped": "no ../shared/data"}
    for name, (x, y) in load_pairs(data, setting["pairs"]).items():
        x, parts = x.astype(np.float32), np.array_split(np.arange(len(x)), 10)
        found = kept.setdefault(name, {"chosen": {}, "folds": {}})
        found["paper"] = dict(zip(("AdaNet", "logistic regression", "the paper's network"), PAPER[name], strict=True))
        for side in setting["sides"]:
            records = found["folds"].setdefault(side, {})
            for fold in setting["folds"]:
                if str(fold) in records:
                    continue
                trials = sides(setting, fold, found.get("parameters", 0))
                if side not in found["chosen"]:
                    found["chosen"][side] = search(name, side, trials[side], x, y, parts)
                picked = {s: repr(trials[s][choice["number"]]) for s, choice in found["chosen"].items()}
                twins = [s for s in picked if picked[s] == picked[side] and str(fold) in found["folds"][s]]
                if twins:  # a side that chose the same settings ran them with the same seed
                    records[str(fold)] = found["folds"][twins[0]][str(fold)]
                else:
                    records[str(fold)] = on_fold(trials[side][found["chosen"][side]["number"]], x, y, parts, fold)
                say(name, side, fold, round(records[str(fold)]["accuracy"], 4))
                save(kept)
            found.setdefault("parameters", round(mean(r.get("parameters", 0) for r in records.values())))
            found["summary"] = compared(found["folds"], "AdaNet")
            found["summary_of_shrinkage"] = compared(found["folds"], "AdaNet with shrinkage")
            save(kept)
    kept["together"] = {reference: over_pairs(kept, reference) for reference in ("AdaNet", "AdaNet with shrinkage")}
    return kept


def over_pairs(kept: dict[str, Any], reference: str) -> dict[str, Any]:
    """The reference's lead over each side, in accuracy, on all pairs together: its mean, and p of a t-test over all folds of all pairs, and
    over the folds' means (the folds of different pairs share no images, those of one pair share training images)."""
    found = [pair["folds"] for pair in kept.values() if reference in pair.get("folds", {})]
    table: dict[str, Any] = {}
    for side in sorted({side for folds in found for side in folds} - {reference}):
        leads = [{f: folds[reference][f]["accuracy"] - record["accuracy"] for f, record in folds.get(side, {}).items() if f in folds[reference]}
                 for folds in found]  # fmt: skip
        every = [lead for pair in leads for lead in pair.values()]
        shared = [f for f in map(str, FOLDS) if all(f in pair for pair in leads)]
        if len(shared) > 1:
            by_fold = [mean(pair[f] for pair in leads) for f in shared]
            table[side] = {"lead": mean(every), "folds": len(every), "p": t_test(every),
                           "p_of_fold_means": t_test(by_fold),
                           "pairs_ahead": sum(mean(pair.values()) > 0 for pair in leads)}  # fmt: skip
    return table


def compared(folds: dict[str, dict[str, Any]], reference: str) -> dict[str, Any]:
    """Each side beside the reference on the folds that both have."""
    table = {}
    for side, done in folds.items():
        common = [fold for fold in folds.get(reference, {}) if fold in done]
        if len(common) > 1:
            accuracies = {s: [folds[s][fold]["accuracy"] for fold in common] for s in (reference, side)}
            both = summary(accuracies, reference)
            table[side] = {**both[side], "folds": len(common), f"mean_of_{reference}": both[reference]["mean"]}
    return table


def search(
    name: str, side: str, trials: list[Any], x: np.ndarray, y: np.ndarray, parts: list[np.ndarray]
) -> dict[str, Any]:
    """The settings that do best on part 1, having seen parts 2 to 9."""
    valid, rows = parts[1], np.concatenate(parts[2:])
    began = time.perf_counter()
    scores = [trial.fit(x[rows], y[rows]).score(x[valid], y[valid]) for trial in trials]
    say(name, side, [round(s, 4) for s in scores], f"{time.perf_counter() - began:.0f} s")
    number = int(np.argmax(scores))
    return {"number": number, "settings": " ".join(repr(trials[number]).split())[:400], "validation": scores}


def on_fold(model: Any, x: np.ndarray, y: np.ndarray, parts: list[np.ndarray], fold: int) -> dict[str, Any]:
    """Accuracy on part `fold` having seen all but it and the next; of AdaNet what was learned, too."""
    test, rows = parts[fold], np.concatenate([p for k, p in enumerate(parts) if k not in (fold, (fold + 1) % 10)])
    began = time.perf_counter()
    record = {"accuracy": model.fit(x[rows], y[rows]).score(x[test], y[test]), "seconds": time.perf_counter() - began}
    if isinstance(model, AdaNetClassifier):
        layers = [block.depth for block in model.module_.blocks]
        record |= {"parameters": model.num_parameters_, "blocks": len(layers), "depth": max(layers, default=0),
                   "units_used": [int((w != 0).any(1).sum()) for w in model.output_weights_],
                   "bound": model.generalization_bound(x[rows], y[rows])}  # fmt: skip
    return record


def spirals() -> tuple[np.ndarray, np.ndarray]:
    """The two spirals of Lang and Witbrock (1988), three turns each, with four points for each of theirs: of their 97, a fifth held out
    leaves gaps wider than the next turn is far, so that everything, rightly, is at chance."""
    steps = np.arange(0, 97, 0.25)
    angle, radius = steps * np.pi / 16, 6.5 * (104 - steps) / 104
    one = np.stack([radius * np.sin(angle), radius * np.cos(angle)], 1)
    return np.concatenate([one, -one]), np.repeat([0, 1], len(steps))


def table_sides(fold: int, inputs: int, classes: int, like: int) -> dict[str, list[Any]]:
    """Six settings of each side; an ensemble is about as large as `like` says, as in `sides`."""
    network = {"n_iter_no_change": 20, "max_iter": 500, "random_state": fold}  # a held-out part would be too small

    return {
        "AdaNet": [AdaNetClassifier(adanet_lambda=price, width=width, random_state=fold)
                   for price in (1e-4, 1e-3, 1e-2) for width in (16, 64)],
        "MLP": [make_pipeline(StandardScaler(), MLPClassifier(units, learning_rate_init=rate, **network))
                for units in ((32,), (128,), (64, 64)) for rate in (1e-3, 5e-3)],
        "deep ensemble": [deep_ensemble(StandardScaler(), like, (inputs, units, classes), learning_rate_init=rate, **network)
                          for units in (32, 64, 128) for rate in (1e-3, 5e-3)],
        "logistic regression": [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
                                for c in (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)],
        "gradient boosting": boosting(fold),
    }  # fmt: skip


def tables(setting: dict[str, Any], kept: dict[str, Any], save: Any) -> dict[str, Any]:
    """Accuracy over folds with each side's settings chosen on a fifth of the training rows, six settings each."""
    bunches = {"breast_cancer": load_breast_cancer(), "wine": load_wine(), "digits": load_digits()}
    sets = {name: (bunch.data, bunch.target) for name, bunch in bunches.items()} | {"two_spirals": spirals()}
    for name, (x, y) in sets.items():
        if name in kept:
            continue
        scores: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        parameters: list[int] = []
        folds = StratifiedKFold(setting["table_folds"], shuffle=True, random_state=0)
        for fold, (rows, test) in enumerate(folds.split(x, y)):
            draw = np.random.default_rng(fold).permutation(rows)
            valid, inner = draw[: len(draw) // 5], draw[len(draw) // 5 :]
            like = 0
            for side in table_sides(fold, 1, 1, 0):
                trials = table_sides(fold, x.shape[1], len(set(y)), like)[side]
                best = trials[int(np.argmax([t.fit(x[inner], y[inner]).score(x[valid], y[valid]) for t in trials]))]
                began = time.perf_counter()
                best.fit(x[rows], y[rows])
                seconds.setdefault(side, []).append(time.perf_counter() - began)
                scores.setdefault(side, []).append(float(best.score(x[test], y[test])))
                if isinstance(best, AdaNetClassifier):
                    like = best.num_parameters_
                    parameters.append(like)
            say(name, fold, {side: round(values[-1], 4) for side, values in scores.items()})
        kept[name] = {
            "scores": scores,
            "seconds": seconds,
            "parameters": parameters,
            "summary": summary(scores, "AdaNet"),
        }
        save(kept)
    return kept


def framework(setting: dict[str, Any], kept: dict[str, Any], save: Any) -> dict[str, Any]:
    """Seconds of a search on breast_cancer here and by the TensorFlow framework: width 64, three rounds of candidates of two depths,
    500 steps each on all rows at once, Adam at 0.01, no price; in turn, the median of two."""
    if not setting["framework_python"]:
        say("framework: left out, --framework-python is not given")
        return kept
    width, rounds, steps, rate = 64, 3, 500, 0.01
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    rows, test = order[114:], order[:114]
    x = ((x - x[rows].mean(0)) / x[rows].std(0)).astype(np.float32)
    runs: dict[str, list[dict[str, float]]] = {"meristem": [], "TensorFlow framework": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        np.savez(file, x=x[rows], y=y[rows].astype(np.float32), x_test=x[test], y_test=y[test].astype(np.float32))
        script = Path(__file__).parent / "support" / "adanet_framework.py"
        command = [setting["framework_python"], script, file, *map(str, (width, rounds, steps, rate))]
        for turn in range(2):
            model = AdaNetClassifier(width=width, max_rounds=rounds, max_steps=steps, learning_rate=rate, adanet_lambda=0.0,
                                     min_improvement=0.0, patience=steps, random_state=turn)  # fmt: skip
            began = time.perf_counter()
            model.fit(x[rows], y[rows])
            seconds = time.perf_counter() - began
            made = sum("refused" not in record for record in model.history_[1:])
            runs["meristem"].append({"seconds": seconds, "accuracy": model.score(x[test], y[test]), "rounds": made})
            said = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ).stdout
            runs["TensorFlow framework"].append(json.loads(said.splitlines()[-1]))
            say({side: done[-1] for side, done in runs.items()})
    middle = {side: median(run["seconds"] for run in done) for side, done in runs.items()}
    kept |= {"runs": runs, "seconds": middle, "times_meristem": middle["TensorFlow framework"] / middle["meristem"]}
    save(kept)
    return kept


PARTS = {"pairs": pairs, "tables": tables, "framework": framework}


def draw(result: dict[str, Any], file: Path) -> None:
    """Accuracies of all sides, a panel for each set, the paper's own beside them; and AdaNet's answers on the two spirals."""
    sets = {k: v for part in ("pairs", "tables") for k, v in result.get(part, {}).items() if "summary" in v}
    columns = min(5, len(sets) + 1)
    rows = -(-(len(sets) + 1) // columns)
    with picture(file, rows, columns, figsize=(4.2 * columns, 2.6 * rows), squeeze=False, dpi=110) as axes:
        for panel, (name, found) in zip(axes.flat, sets.items(), strict=False):
            names = list(found["summary"])
            means, deviations = ([found["summary"][n][key] for n in names] for key in ("mean", "sd"))
            panel.errorbar(means, range(len(names)), xerr=deviations, fmt="o", label="here")
            theirs = {n: accuracy for n, accuracy in found.get("paper", {}).items() if n in names}
            panel.plot(theirs.values(), [names.index(n) for n in theirs], "x", color="grey", label="published")
            panel.axvline(means[names.index("AdaNet")], color="lightgrey", linewidth=1, zorder=0)
            panel.set_yticks(range(len(names)), names)
            panel.set_title(name)
            if theirs:
                panel.legend(fontsize="small")
        x, y = spirals()
        grid = np.stack(np.meshgrid(*[np.linspace(-7, 7, 200)] * 2), -1).reshape(-1, 2)
        learned = AdaNetClassifier(adanet_lambda=1e-4, random_state=0).fit(x, y).predict_proba(grid)[:, 1]
        panel = axes.flat[len(sets)]
        panel.imshow(learned.reshape(200, 200), extent=(-7, 7, -7, 7), origin="lower", cmap="coolwarm", alpha=0.6)
        panel.scatter(*x.T, c=y, cmap="coolwarm", s=2)
        panel.set_title("two spirals by AdaNet")
        for unused in axes.flat[len(sets) + 1 :]:
            unused.axis("off")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", dest="setting", action="store_const", const="small", default="small")
    size.add_argument("--large", dest="setting", action="store_const", const="large")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--pairs", help="comma-separated, instead of the setting's")
    parser.add_argument(
        "--framework-python", help="a Python 3.7 with the TensorFlow framework: support/adanet_framework.py"
    )
    parser.add_argument(
        "--sides", help="comma-separated, of the pairs; AdaNet first: an ensemble is as large as what it learns"
    )
    chosen = parser.parse_args()
    setting = {**SETTINGS[chosen.setting], "sides": list(sides(SETTINGS[chosen.setting], 0, 0))}
    setting["framework_python"] = chosen.framework_python
    if chosen.sides:
        setting["sides"] = chosen.sides.split(",")
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
    draw(result, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
