"""The infinite RBM and EnergyNet: likelihoods, whether widths follow the data, accuracy of the network that results, speed.

    python benchmarks/energynet.py --small    # one CPU core, about an hour
    python benchmarks/energynet.py --large    # one GPU: the published numbers of passes

Parts (`--parts`): `likelihood`, test log-likelihood by annealed importance sampling on binarised MNIST and CalTech silhouettes
(../shared/data; skipped where those are not); `complexity`, widths against what the data hold; `accuracy`, EnergyNet against a
grid-searched MLP of as many trials; `speed`, an update beside plain NumPy and scikit-learn. Each part is added to
results/energynet.json when it has ended; a part that is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parent))

from support import shared_data, update_speed
from support.statistics import summary
from support.terminal import say
from support.update_speed import SIDES as UPDATES

from meristem.adaptive import RBM, EnergyNetClassifier, InfiniteRBM
from meristem.adaptive.pictures import filters, posterior_over_units, save_figure, width_over_training
from meristem.adaptive.rbm.infinite import PUBLISHED
from meristem.checkpoints.write import write_json

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "mnist": {"rows": 20_000, "passes": 15, "tuning_passes": 3, "rates": (0.01, 0.03, 0.1), "seeds": 2, "device": "cpu"},
        "caltech": {"rows": 4_100, "passes": 60, "tuning_passes": 20, "rates": (0.01, 0.03, 0.1), "seeds": 3, "device": "cpu"},
        "ais": {"chains": 100, "count": 3000},
        "complexity_seeds": 3,
        "folds": 5,
        "speed_turns": 5,
    },
    "large": {
        "mnist": {"rows": 60_000, "passes": 100, "tuning_passes": 10, "rates": (0.01, 0.03, 0.1), "seeds": 3, "device": "cuda"},
        "caltech": {"rows": 4_100, "passes": 1000, "tuning_passes": 60, "rates": (0.01, 0.03, 0.1), "seeds": 3, "device": "cuda"},
        "ais": {"chains": 1000, "count": 14500},
        "complexity_seeds": 5,
        "folds": 10,
        "speed_turns": 5,
    },
}  # fmt: skip
SIDES = {
    "RBM-100": (RBM, {"n_components": 100}),
    "RBM-500": (RBM, {"n_components": 500}),
    "iRBM": (InfiniteRBM, PUBLISHED),
}


# -- likelihood ---------------------------------------------------------------------------------------------------------


def load(name: str, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    loader = shared_data.loader()
    if loader is None:
        return None
    if name == "caltech":
        data = loader.silhouettes()
        train, valid, test = (data[f"{part}_data"].astype(np.float32) for part in ("train", "val", "test"))
    else:
        data = loader.binary_mnist()
        arrays = [v.astype(np.float32) for v in data.values() if v.ndim == 2 and 784 in v.shape]
        arrays = [a if a.shape[1] == 784 else a.T for a in arrays]
        whole, test = max(arrays, key=len), min(arrays, key=len)
        train, valid = whole[:-5000], whole[-5000:]
    return train[:rows], valid, test


def likelihood_of(model: RBM, data: np.ndarray, ais: dict[str, int]) -> dict[str, float]:
    estimate = model.annealed(**ais)
    energy = float(model.free_energy(data).mean())
    return {
        "log_likelihood": -energy - estimate.log_partition,
        "low": -energy - estimate.high,
        "high": -energy - estimate.low,
    }


def likelihood(setting: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name in ("caltech", "mnist"):
        budget = setting[name]
        data = load(name, budget["rows"])
        if data is None:
            table[name] = "skipped: no ../shared/data"
            continue
        train, valid, test = data
        table[name] = {"train_rows": len(train), "passes": budget["passes"], "sides": {}}
        for side, (kind, options) in SIDES.items():
            tuned = {}
            for rate in budget["rates"]:
                model = kind(**options, learning_rate=rate, n_iter=budget["tuning_passes"], device=budget["device"],
                             random_state=100)  # fmt: skip
                model.fit(train)
                tuned[rate] = likelihood_of(model, valid, setting["ais"])["log_likelihood"]
                say(name, side, "rate", rate, "valid", round(tuned[rate], 2), "units", model.n_components_)
            rate = max(tuned, key=tuned.__getitem__)
            runs = []
            for seed in range(budget["seeds"]):
                began = time.perf_counter()
                model = kind(**options, learning_rate=rate, n_iter=budget["passes"], device=budget["device"],
                             random_state=seed)  # fmt: skip
                model.fit(train)
                runs.append({
                    "seed": seed,
                    "units": model.n_components_,
                    "seconds": time.perf_counter() - began,
                    **likelihood_of(model, test, setting["ais"]),
                })  # fmt: skip
                say(name, side, runs[-1])
            table[name]["sides"][side] = {"rate": rate, "tuning": {str(k): v for k, v in tuned.items()}, "runs": runs}
            if side == "iRBM":
                pictures(name, model, train[:2000])
    return table


def pictures(name: str, model: InfiniteRBM, data: np.ndarray) -> None:
    folder = ROOT / "results"
    save_figure(filters(model.components_, (28, 28)), folder / f"energynet_{name}_filters.png")
    save_figure(posterior_over_units(model.posterior(data)), folder / f"energynet_{name}_posterior.png")
    save_figure(width_over_training([model.history_]), folder / f"energynet_{name}_width.png")


# -- complexity ---------------------------------------------------------------------------------------------------------


def bars(count: int, seed: int = 0, rows: int = 2000) -> np.ndarray:
    """144 pixels in 16 strips, `count` of which are on or off each by itself (0.3); two pixels in a hundred flip."""
    draw = np.random.default_rng(seed)
    on = draw.random((rows, count)) < 0.3
    images = np.zeros((rows, 144))
    for strip, pixels in enumerate(np.array_split(np.arange(144), 16)[:count]):
        images[np.ix_(on[:, strip], pixels)] = 1
    return np.abs(images - (draw.random(images.shape) < 0.02)).astype(np.float32)


def width(data: np.ndarray, seed: int, **options: Any) -> int:
    return EnergyNetClassifier(max_layers=1, random_state=seed, **options).fit_structure(data).widths_[0]


def complexity(setting: dict[str, Any]) -> dict[str, Any]:
    counts, table = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16), []
    for seed in range(setting["complexity_seeds"]):
        widths = [width(bars(count, seed), seed) for count in counts]
        eight = bars(8, seed)
        draw = np.random.default_rng(seed)
        digits = load_digits()
        images = (digits.data / 16).astype(np.float32)
        two = images[np.isin(digits.target, (0, 1))]
        ten = images[draw.permutation(len(images))[: len(two)]]
        table.append({
            "seed": seed,
            "widths": dict(zip(map(str, counts), widths, strict=True)),
            "spearman": float(spearmanr(counts, widths).statistic),
            "shuffled_pixels": width(np.stack([draw.permutation(column) for column in eight.T], 1), seed),
            "duplicated_pixels": width(np.repeat(eight, 2, 1), seed),
            "constant_pixels_added": width(np.concatenate([eight, np.zeros_like(eight)], 1), seed),
            "digits_of_2_classes": width(two, seed),
            "digits_of_10_classes": width(ten, seed),
            "beta": {str(beta): width(eight, seed, beta=beta) for beta in (1.2, 1.5, 2.0, 3.0, 4.0, 6.0)},
        })  # fmt: skip
        say(table[-1])
    return {"runs": table}


# -- accuracy -----------------------------------------------------------------------------------------------------------


def candidates(side: str, seed: int) -> list[Any]:
    """Six trials for each side that is tuned."""
    if side == "EnergyNet":
        return [EnergyNetClassifier(beta=beta, learning_rate=rate, random_state=seed)
                for beta in (1.5, 2.0, 4.0) for rate in (1e-3, 5e-3)]  # fmt: skip
    if side == "structure only":
        return [EnergyNetClassifier(beta=beta, learning_rate=rate, initial="random", random_state=seed)
                for beta in (1.5, 2.0, 4.0) for rate in (1e-3, 5e-3)]  # fmt: skip
    if side == "random widths":
        return [EnergyNetClassifier(beta=beta, learning_rate=rate, widths="random", random_state=seed)
                for beta in (1.5, 2.0, 4.0) for rate in (1e-3, 5e-3)]  # fmt: skip
    if side == "MLP grid":
        return [make_pipeline(StandardScaler(), MLPClassifier(sizes, learning_rate_init=rate, n_iter_no_change=20,
                                                              max_iter=500, random_state=seed))
                for sizes in ((32,), (128,), (64, 64)) for rate in (1e-3, 5e-3)]  # fmt: skip
    return [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)) for c in (0.01, 0.03, 0.1, 0.3, 1, 10)
    ]


def accuracy(setting: dict[str, Any]) -> dict[str, Any]:
    sets = {"digits": load_digits(), "breast_cancer": load_breast_cancer(), "wine": load_wine()}
    sides = ("EnergyNet", "structure only", "random widths", "MLP grid", "logistic regression")
    table: dict[str, Any] = {}
    for name, bunch in sets.items():
        x = bunch.data / 16 if name == "digits" else bunch.data
        scores: dict[str, list[float]] = {side: [] for side in sides}
        folds = StratifiedKFold(setting["folds"], shuffle=True, random_state=0)
        for fold, (rows, test) in enumerate(folds.split(x, bunch.target)):
            inner, valid = train_test_split(rows, test_size=0.2, random_state=fold, stratify=bunch.target[rows])
            for side in sides:
                trials = candidates(side, fold)
                chosen = [t.fit(x[inner], bunch.target[inner]).score(x[valid], bunch.target[valid]) for t in trials]
                best = trials[int(np.argmax(chosen))].fit(x[rows], bunch.target[rows])
                scores[side].append(float(best.score(x[test], bunch.target[test])))
            say(name, fold, {side: round(values[-1], 4) for side, values in scores.items()})
        compared = summary(scores, "EnergyNet")
        table[name] = {side: {"scores": values, **compared[side]} for side, values in scores.items()}
    return {"trials_per_side": 6, "folds": setting["folds"], "sets": table}


# -- speed --------------------------------------------------------------------------------------------------------------


def speed(setting: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of an update of 64 rows of MNIST on a machine of at most 500 units that has learned for two passes: each side in a process of its own, with one
    thread and with all, in turn; the median of all turns."""
    device = setting["mnist"]["device"]
    data = load("mnist", 20_000)
    if data is None:
        return {"skipped": "no ../shared/data"}
    counts = sorted({1, torch.get_num_threads()}) if device == "cpu" else [torch.get_num_threads()]
    taken: dict[int, dict[str, list[float]]] = {threads: {side: [] for side in UPDATES} for threads in counts}
    with tempfile.TemporaryDirectory() as folder:
        model = InfiniteRBM(
            **PUBLISHED | {"max_components": 500, "n_iter": 2, "device": device, "random_state": 0}
        ).fit(data[0])
        model.save(Path(folder) / "machine")
        np.save(Path(folder) / "rows.npy", data[0][: 20 * 64].reshape(20, 64, -1))
        for _, threads in itertools.product(range(setting["speed_turns"]), counts):
            environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
            for side, times in taken[threads].items():
                command = [sys.executable, update_speed.__file__, side, folder, device]
                ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                times.append(float(ran.stdout))
            say(threads, {side: round(times[-1], 2) for side, times in taken[threads].items()})
    table: dict[str, Any] = {"device": device, "units": model.n_components_}
    for threads, turns in taken.items():
        middle = {side: median(times) for side, times in turns.items()}
        ratios = {side: value / middle["meristem float32"] for side, value in middle.items()}
        table[f"{threads} threads"] = {"milliseconds": middle, "times_meristem": ratios, "turns": turns}
    return table


PARTS = {"complexity": complexity, "accuracy": accuracy, "likelihood": likelihood, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", dest="setting", action="store_const", const="small", default="small")
    size.add_argument("--large", dest="setting", action="store_const", const="large")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--again", action="store_true", help="run parts that are there already")
    chosen = parser.parse_args()
    out = ROOT / "results" / ("energynet.json" if chosen.setting == "small" else "energynet_large.json")
    result = json.loads(out.read_text()) if out.exists() else {}
    result |= {"setting": SETTINGS[chosen.setting], "machine": platform.platform(), "torch": torch.__version__}
    if torch.cuda.is_available():
        result["gpu"] = torch.cuda.get_device_name()
    for part in chosen.parts.split(","):
        if chosen.again or part not in result:
            result[part] = PARTS[part](SETTINGS[chosen.setting])
            write_json(out, result)


if __name__ == "__main__":
    main()
