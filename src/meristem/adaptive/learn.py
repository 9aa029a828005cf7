"""From a table to a learned network on disk: the main job of `meristem learn`."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from meristem.adaptive.adanet import AdaNetClassifier, AdaNetRegressor
from meristem.adaptive.energynet import EnergyNetClassifier, EnergyNetRegressor
from meristem.adaptive.pictures import network, save_figure, width_over_training
from meristem.adaptive.tables import Table
from meristem.checkpoints.write import atomic_directory, write_json
from meristem.errors import MeristemError, nearest

Estimator = AdaNetClassifier | AdaNetRegressor | EnergyNetClassifier | EnergyNetRegressor
KINDS: dict[str, tuple[type[Estimator], type[Estimator]]] = {
    "adanet": (AdaNetClassifier, AdaNetRegressor),
    "energynet": (EnergyNetClassifier, EnergyNetRegressor),
}


@dataclass(frozen=True)
class Learned:
    """What was learned, and how it does on rows it has not seen: accuracy, or R^2 in regression; beside a linear model's."""

    estimator: Estimator
    metrics: dict[str, Any]


def new_estimator(kind: str, classification: bool, options: Mapping[str, Any]) -> Estimator:
    """The estimator of a kind with options as a command line gives them.

    Raises:
        MeristemError: for an unknown kind or option, or a value that is none of an option's choices.
    """
    if kind not in KINDS:
        raise MeristemError(f"unknown method {kind!r}; {nearest(kind, KINDS)}")
    chosen = KINDS[kind][0 if classification else 1]
    hints = typing.get_type_hints(chosen)
    known = {f.name for f in dataclasses.fields(chosen) if f.init} - {"verbose", "checkpoint", "random_state"}
    for name, value in options.items():
        if name not in known:
            raise MeristemError(f"{kind} has no option {name!r}; {nearest(name, known)}")
        if typing.get_origin(hints[name]) is Literal and value not in typing.get_args(hints[name]):
            raise MeristemError(f"{kind}: {name} is one of {', '.join(typing.get_args(hints[name]))}, got {value!r}")
        if hints[name] in (int, float) and not isinstance(value, int | float):
            raise MeristemError(f"{kind}: {name} is a number, got {value!r}")
    return chosen(**options)


def learn(
    kind: str,
    table: Table,
    out: Path,
    options: Mapping[str, Any],
    seed: int = 0,
    test_share: float = 0.2,
    overwrite: bool = False,
) -> Learned:
    """Learn on a part of the table, measure on the rest, and write OUT: `model/`, `metrics.json`, `summary.txt`, `structure.png`.

    A state is kept beside OUT until it is complete; the same call after a kill goes on from there.

    Raises:
        MeristemError: for bad options, or if `out` exists and `overwrite` is not set.
    """
    if out.exists() and not overwrite:
        raise MeristemError(f"{out} exists; choose another place or pass --overwrite")
    if not 0 < test_share < 1:
        raise MeristemError(f"the share of test rows is between 0 and 1, got {test_share}")
    estimator = new_estimator(kind, table.is_classification, options)
    said = repr((kind, sorted(options.items()), seed, test_share)).encode() + table.x.tobytes() + table.y.tobytes()
    state = out.parent / f".{out.name}.{hashlib.sha256(said).hexdigest()[:8]}.state"
    estimator.set_params(random_state=seed, verbose=1, checkpoint=str(state / "search"))
    x, test_x, y, test_y = train_test_split(
        table.x,
        table.y,
        test_size=test_share,
        random_state=seed,
        stratify=table.y if table.is_classification and np.unique(table.y, return_counts=True)[1].min() > 1 else None,
    )
    estimator.fit(x, y)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000) if table.is_classification else Ridge())
    metrics = {
        "method": kind,
        "task": "classification" if table.is_classification else "regression",
        "train_rows": len(x),
        "test_rows": len(test_x),
        "measure": "accuracy" if table.is_classification else "R^2",
        "test_score": float(estimator.score(test_x, test_y)),
        "train_score": float(estimator.score(x, y)),
        "linear_test_score": float(linear.fit(x, y).score(test_x, test_y)),
        "parameters": estimator.num_parameters_,
        "seed": seed,
        "options": dict(options),
        "features": table.names,
        "target": table.target,
    }
    with atomic_directory(out, overwrite) as folder:
        estimator.save(folder / "model")
        write_json(folder / "metrics.json", metrics)
        (folder / "summary.txt").write_text(estimator.summary() + "\n")
        if isinstance(estimator, AdaNetClassifier | AdaNetRegressor):
            save_figure(network(estimator.module_), folder / "structure.png")
        else:
            histories = [layer.history for layer in estimator.layers_]
            save_figure(width_over_training(histories), folder / "structure.png")
    shutil.rmtree(state, ignore_errors=True)
    return Learned(estimator, metrics)
