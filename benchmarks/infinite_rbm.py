"""The infinite RBM: whether widths follow the data, pictures of what it has learned, and the speed of an update.

    python benchmarks/infinite_rbm.py             # one CPU core, about an hour

Parts (`--parts`): `widths`, EnergyNet's first layer against what made-up data hold; `pictures`, filters and widths on binarised MNIST and
CalTech silhouettes (../shared/data; skipped where that is not); `speed`, an update beside plain NumPy and scikit-learn. Each part is added
to results/infinite_rbm.json when it has ended; a part that is there is not run again. Likelihoods are a trial: `python -m benchmarks run
likelihood`.
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
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.support import shared_data, update_speed
from benchmarks.support.terminal import say
from benchmarks.support.update_speed import SIDES as UPDATES
from benchmarks.trials.likelihood import images
from meristem.adaptive import EnergyNetClassifier, InfiniteRBM
from meristem.adaptive.pictures import filters, posterior_over_units, save_figure, width_over_training
from meristem.adaptive.rbm.infinite import PUBLISHED
from meristem.checkpoints.write import write_json

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "infinite_rbm.json"
SEEDS, TURNS = 3, 5
PASSES = {"caltech": 60, "mnist": 15}
STRIPS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)


# -- widths -------------------------------------------------------------------------------------------------------------


def bars(count: int, seed: int = 0, rows: int = 2000) -> np.ndarray:
    """144 pixels in 16 strips, `count` of which are on or off each by itself (0.3); two pixels in a hundred flip."""
    draw = np.random.default_rng(seed)
    on = draw.random((rows, count)) < 0.3
    shown = np.zeros((rows, 144))
    for strip, pixels in enumerate(np.array_split(np.arange(144), 16)[:count]):
        shown[np.ix_(on[:, strip], pixels)] = 1
    return np.abs(shown - (draw.random(shown.shape) < 0.02)).astype(np.float32)


def width(data: np.ndarray, seed: int, **options: Any) -> int:
    return EnergyNetClassifier(max_layers=1, random_state=seed, **options).fit_structure(data).widths_[0]


def widths() -> dict[str, Any]:
    """The width of the first layer, where the number of independent strips is known, and where the data are changed."""
    table = []
    for seed in range(SEEDS):
        found = [width(bars(count, seed), seed) for count in STRIPS]
        eight = bars(8, seed)
        draw = np.random.default_rng(seed)
        digits = load_digits()
        rows = (digits.data / 16).astype(np.float32)
        two = rows[np.isin(digits.target, (0, 1))]
        ten = rows[draw.permutation(len(rows))[: len(two)]]
        table.append({
            "seed": seed,
            "widths": dict(zip(map(str, STRIPS), found, strict=True)),
            "spearman": float(spearmanr(STRIPS, found).statistic),
            "shuffled_pixels": width(np.stack([draw.permutation(column) for column in eight.T], 1), seed),
            "duplicated_pixels": width(np.repeat(eight, 2, 1), seed),
            "constant_pixels_added": width(np.concatenate([eight, np.zeros_like(eight)], 1), seed),
            "digits_of_2_classes": width(two, seed),
            "digits_of_10_classes": width(ten, seed),
            "beta": {str(beta): width(eight, seed, beta=beta) for beta in (1.2, 1.5, 2.0, 3.0, 4.0, 6.0)},
        })  # fmt: skip
        say(table[-1])
    return {"runs": table}


# -- pictures -----------------------------------------------------------------------------------------------------------


def pictures() -> dict[str, Any]:
    """Filters in their order, the posterior over the number of units, and the width over training."""
    if shared_data.loader() is None:
        return {"skipped": "no ../shared/data"}
    units = {}
    for name, passes in PASSES.items():
        rows = images(name)["train"][:20_000]
        model = InfiniteRBM(**PUBLISHED | {"n_iter": passes, "random_state": 0}).fit(rows)
        place = str(OUT.with_suffix("")) + f"_{name}"
        save_figure(filters(model.components_, (28, 28)), f"{place}_filters.png")
        save_figure(posterior_over_units(model.posterior(rows[:2000])), f"{place}_posterior.png")
        save_figure(width_over_training([model.history_]), f"{place}_width.png")
        units[name] = model.n_components_
    return {"passes": PASSES, "units": units}


# -- speed --------------------------------------------------------------------------------------------------------------


def speed() -> dict[str, Any]:
    """Milliseconds of an update of 64 rows of MNIST on a machine of at most 500 units that has learned for two passes: each side in a
    process of its own, with one thread and with all, in turn; the median of all turns.
    """
    if shared_data.loader() is None:
        return {"skipped": "no ../shared/data"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = sorted({1, torch.get_num_threads()}) if device == "cpu" else [torch.get_num_threads()]
    taken: dict[int, dict[str, list[float]]] = {threads: {side: [] for side in UPDATES} for threads in counts}
    with tempfile.TemporaryDirectory() as folder:
        rows = images("mnist")["train"][:20_000]
        options = PUBLISHED | {"max_components": 500, "n_iter": 2, "device": device, "random_state": 0}
        model = InfiniteRBM(**options).fit(rows)
        model.save(Path(folder) / "machine")
        np.save(Path(folder) / "rows.npy", rows[: 20 * 64].reshape(20, 64, -1))
        for _, threads in itertools.product(range(TURNS), counts):
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


PARTS = {"widths": widths, "pictures": pictures, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--again", action="store_true", help="run parts that are there already")
    chosen = parser.parse_args()
    result = json.loads(OUT.read_text()) if OUT.exists() else {}
    for part in chosen.parts.split(","):
        if chosen.again or part not in result:
            result[part] = PARTS[part]()
            result |= {"machine": platform.platform(), "torch": torch.__version__}
            write_json(OUT, result)


if __name__ == "__main__":
    main()
