"""AdaNet and EnergyNet on tables as they lie on disk, beside logistic (ridge) regression, a multilayer perceptron and gradient boosting.

    python benchmarks/tables.py --small    # one CPU core, about 15 minutes: at most 1,000 rows of a table, 5 folds
    python benchmarks/tables.py --large    # whole tables

Every table of ../shared/data/tabular is read by `meristem.adaptive.tables.open_table` without being told anything; where that folder is not, the
data sets that scikit-learn ships are used. All sides read the same encoded rows of the same folds; ours have the options of `meristem learn`, the
others scikit-learn's defaults (the perceptron with up to 300 passes), untuned; ours are the
defaults of `meristem learn`, which were chosen on some of these tables. Seconds are CPU seconds of the fits alone, on one thread.
Parts (`--parts`): `tables`, `repeats` (AdaNet and the perceptron on ten other splits into folds of six tables), `speed` (digits and breast cancer; with `--before DIRECTORY` also by an earlier source tree, in the same run), `rows` (100,000 x 20). Writes results/tables.json after every fold, where what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor

from meristem.adaptive.learn import estimator_for
from meristem.adaptive.learned import fitted_encoder
from meristem.adaptive.tables import Table, build_encoder, encode, open_table
from meristem.adaptive.tables.table import SHIPPED
from meristem.checkpoints.write import write_json

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "tabular"
ROWS = {"small": 1_000, "large": 10**9}
SIDES = ("linear", "perceptron", "boosting", "adanet", "energynet")
FOLDS = 5
AIMED = ("ionosphere", "sonar", "banknote_authentication", "pima-indians-diabetes", "phoneme", "adult-train")
PAIR = ("perceptron", "adanet")
REPEATS = range(11, 21)  # other splits into folds, of the tables where AdaNet is to be the best neural estimator


def sources() -> dict[str, str]:
    """The tables by name."""
    files = sorted(DATA.glob("*.csv.xz"))
    return {file.name.removesuffix(".csv.xz"): str(file) for file in files} or {name: name for name in SHIPPED}


def new_side(side: str, table: Table, rows: int, seed: int) -> Any:
    """An estimator of a side."""
    classes = table.is_classification
    if side == "linear":
        return LogisticRegression(max_iter=1000) if classes else Ridge()
    if side == "perceptron":
        return (MLPClassifier if classes else MLPRegressor)(max_iter=300, random_state=seed)
    if side == "boosting":
        return (HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor)(random_state=seed)
    return estimator_for(side, table, rows, {}).set_params(random_state=seed)


def measure_fold(
    table: Table, fold: int, most: int, done: dict[str, Any], sides: list[str], split: int = 0
) -> dict[str, Any]:
    """Score (accuracy or R^2) and CPU seconds of each side that is not done yet; `split` says into which folds the rows go."""
    order = np.random.default_rng(0).permutation(len(table.y))[:most]
    x, y = table.x.iloc[order], table.y[order]
    kind = StratifiedKFold if table.is_classification else KFold
    train, test = list(kind(FOLDS, shuffle=True, random_state=split).split(x, y))[fold]
    encoder = build_encoder(table.columns, table.task)
    train_x, train_y = fitted_encoder(encoder, x.iloc[train], y[train], table.columns), y[train]
    test_x = encode(encoder, x.iloc[test], table.columns)
    for side in sides:
        if side in done:
            continue
        model = new_side(side, table, len(train), seed=fold + FOLDS * split)
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(train_x, train_y)
        done[side] = {"score": float(model.score(test_x, y[test])), "seconds": time.process_time() - began}
    return done


def run_tables(setting: str, results: dict[str, Any], out: Path, names: list[str], sides: list[str]) -> None:
    """All tables, kept after every fold."""
    kept = results.setdefault("tables", {})
    for fold in range(FOLDS):
        for name in names:
            table = open_table(sources()[name])
            entry = kept.setdefault(name, {"folds": []})
            entry["folds"] += [{} for _ in range(FOLDS - len(entry["folds"]))]
            entry |= {
                "rows": min(len(table.y), ROWS[setting]),
                "of": len(table.y),
                "columns": len(table.names),
                "task": table.task,
                "measure": "accuracy" if table.is_classification else "R^2",
            }
            measure_fold(table, fold, ROWS[setting], entry["folds"][fold], sides)
            write_json(out, results)
        print(f"fold {fold + 1} of {FOLDS}", flush=True)


def run_repeats(setting: str, results: dict[str, Any], out: Path) -> None:
    """AdaNet and the perceptron on other folds of the same rows, kept after every split."""
    kept = results.setdefault("repeats", {})
    for done, split in enumerate(REPEATS):
        for name in (name for name in AIMED if name in sources()):
            table, splits = open_table(sources()[name]), kept.setdefault(name, [])
            if len(splits) > done:
                continue
            splits.append([measure_fold(table, fold, ROWS[setting], {}, list(PAIR), split) for fold in range(FOLDS)])
            write_json(out, results)
        print(f"split {done + 1} of {len(REPEATS)}", flush=True)


def difference(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The mean of second - first over repeated folds, and half of its interval of 95 % (Nadeau & Bengio 2003: folds share rows)."""
    gaps = [second - first for first, second in pairs]
    variance = (1 / len(gaps) + 1 / (FOLDS - 1)) * stdev(gaps) ** 2
    return mean(gaps), float(student.ppf(0.975, len(gaps) - 1)) * variance**0.5


SPEED = """
import json, sys, time, torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from meristem.adaptive import AdaNetClassifier
torch.set_num_threads(1)
x, y = (load_digits if sys.argv[1] == "digits" else load_breast_cancer)(return_X_y=True)
found = []
for seed in range(int(sys.argv[2])):
    a, b, c, d = train_test_split(x, y, test_size=0.25, random_state=seed, stratify=y)
    began = time.process_time()
    model = AdaNetClassifier(random_state=seed).fit(a, c)
    found.append({"seconds": time.process_time() - began, "accuracy": model.score(b, d)})
print(json.dumps(found))
"""


def fits(source: Path, name: str, seeds: int) -> list[dict[str, float]]:
    """Fits of AdaNetClassifier by a source tree, in a process of its own."""
    settings = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SPEED, name, str(seeds)], env=settings, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def run_speed(results: dict[str, Any], out: Path, before: Path | None, seeds: int = 3) -> None:
    """Default fits now, and by the tree `before`, in turns."""
    kept = results.setdefault("speed", {})
    for name in ("digits", "breast_cancer"):
        sides = {"now": ROOT / "src"} | ({"before": before} if before else {})
        kept[name] = {}
        for side, source in sides.items():
            found = fits(source, name, seeds)
            kept[name][side] = {key: mean(fit[key] for fit in found) for key in ("seconds", "accuracy")}
        write_json(out, results)


def run_rows(results: dict[str, Any], out: Path) -> None:
    """One fit of 80,000 rows, as `learn` sets it, and the command on the file, from its start to its report."""
    kept = results.setdefault("speed", {})
    x, y = make_classification(100_000, 20, n_informative=12, random_state=0)
    train_x, test_x, train_y, test_y = train_test_split(x.astype(np.float32), y, test_size=0.2, random_state=0)  # pyright: ignore[reportAttributeAccessIssue]
    table = open_table("breast_cancer")  # of two classes, too
    model = estimator_for("adanet", table, len(train_x), {}).set_params(random_state=0)
    began, wall = time.process_time(), time.perf_counter()
    model.fit(train_x, train_y)
    seconds, elapsed = time.process_time() - began, time.perf_counter() - wall
    kept["100k x 20"] = {"seconds": seconds, "wall_seconds": elapsed, "accuracy": float(model.score(test_x, test_y))}
    with tempfile.TemporaryDirectory() as folder:
        pd.DataFrame(x.astype(np.float32)).assign(target=y).to_csv(f"{folder}/rows.csv", index=False)  # pyright: ignore[reportAttributeAccessIssue]
        arguments = ["learn", "adanet", f"{folder}/rows.csv", f"{folder}/out"]
        settings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from meristem.cli.main import main; main()", *arguments]
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=settings, capture_output=True, check=True)
        elapsed, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    kept["100k x 20"] |= {"command_seconds": used, "command_wall_seconds": elapsed}
    write_json(out, results)


def say(results: dict[str, Any]) -> None:
    """The tables, in Markdown."""
    sides = [
        side for side in SIDES if any(side in fold for e in results.get("tables", {}).values() for fold in e["folds"])
    ]
    if sides:
        print(f"| table | rows | measure | {' | '.join(sides)} |\n|---|---|---|{'---|' * len(sides)}")
    for name, entry in results.get("tables", {}).items():
        cells = []
        for side in sides:
            found = [fold[side] for fold in entry["folds"] if side in fold]
            scores = [100 * one["score"] for one in found]
            spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
            some = f" [{len(found)} folds]" if len(found) < FOLDS else ""
            cells.append(
                f"{mean(scores):.1f}{spread} ({mean(one['seconds'] for one in found):.2g} s){some}" if found else ""
            )
        of = f" of {entry['of']:,}" if entry["of"] > entry["rows"] else ""
        print(f"| {name} | {entry['rows']:,}{of} | {entry['measure']} | {' | '.join(cells)} |")
    for name, splits in results.get("repeats", {}).items():
        folds = [fold for split in splits for fold in split]
        scores = [mean(100 * fold[side]["score"] for fold in folds) for side in PAIR]
        seconds = [mean(fold[side]["seconds"] for fold in folds) for side in PAIR]
        gap, half = difference([(100 * fold[PAIR[0]]["score"], 100 * fold[PAIR[1]]["score"]) for fold in folds])
        said = [f"{score:.1f} ({second:.2g} s)" for score, second in zip(scores, seconds, strict=True)]
        print(
            f"| {name} | {len(folds)} | {' | '.join(said)} | {gap:+.1f} ± {half:.1f} | {seconds[1] / seconds[0]:.1f} |"
        )
    for name, entry in results.get("speed", {}).items():
        print(name, json.dumps(entry))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_const", const="small", dest="setting", default="small")
    parser.add_argument("--large", action="store_const", const="large", dest="setting")
    parser.add_argument("--parts", default="tables,repeats,speed,rows")
    parser.add_argument("--tables", default="", help="some tables only, comma-separated")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--before", type=Path, help="the src folder of an earlier version, to compare speeds with")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "tables.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    if results.get("setting", given.setting) != given.setting:
        results = {}
    results |= {
        "setting": given.setting,
        "machine": f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}",
    }
    names = given.tables.split(",") if given.tables else list(sources())
    if "tables" in given.parts:
        run_tables(given.setting, results, given.out, names, given.sides.split(","))
    if "repeats" in given.parts:
        run_repeats(given.setting, results, given.out)
    if "speed" in given.parts:
        run_speed(results, given.out, given.before)
    if "rows" in given.parts:
        run_rows(results, given.out)
    say(results)


if __name__ == "__main__":
    main()
