"""Measurements of a learned table on rows that it has not seen: the effect of each part, calibration, and the
importance of columns.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import log_loss

from meristem.adaptive.adanet import AdaNetClassifier, AdaNetRegressor
from meristem.adaptive.learned import Estimator, Learned
from meristem.adaptive.tables import encode
from meristem.adaptive.tables.encoding import named_by_words

MOST_ROWS = 2_000  # on which importance is measured
REPEATS = 5  # of the permutation of a column
MOST_MEASURED = 50  # columns whose importance is measured
BINS = 10  # of a calibration curve


@dataclass(frozen=True)
class Addition:
    """The quality of a network of its first parts alone: the score (accuracy or R^2) and the loss (cross
    entropy, or mean squared error in regression).
    """

    parts: int
    score: float
    loss: float


@dataclass(frozen=True)
class Importance:
    """The fall of the score when a column's values are permuted between rows, with its standard deviation
    over the repeats.
    """

    column: str
    fall: float
    deviation: float


@dataclass(frozen=True)
class Calibration:
    """How often the predicted class is right, by its predicted probability.

    Args:
        said: the mean predicted probability of each bin (bins,).
        held: the share of right predictions in each bin (bins,).
        rows: the number of rows in each bin (bins,).
        error: the mean of |said - held|, weighted by rows (Guo et al. 2017).
    """

    said: np.ndarray
    held: np.ndarray
    rows: np.ndarray
    error: float


def additions(estimator: Estimator, x: pd.DataFrame, y: np.ndarray) -> list[Addition]:
    """The quality of an AdaNet estimator's first 1, 2, ... parts on rows x (n, features), y (n,). It is empty
    for other estimators.
    """
    if not isinstance(estimator, AdaNetClassifier | AdaNetRegressor):
        return []
    found, count = [], len(estimator.output_weights_)
    for parts in range(1, count + 1):
        shorter: Any = copy.copy(estimator)
        shorter.module_ = copy.deepcopy(estimator.module_)
        for weights in list(shorter.module_.output_weights)[parts:]:
            weights.data.zero_()
        found.append(Addition(parts, float(shorter.score(x, y)), loss_of(shorter, x, y)))
    return found


def loss_of(estimator: Estimator, x: pd.DataFrame, y: np.ndarray) -> float:
    """The cross entropy of a classifier, or the mean squared error of a regressor, on rows x (n, features), y
    (n,).
    """
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return float(np.mean((np.asarray(estimator.predict(x)) - y) ** 2))
    known = np.isin(y, classes)
    said = estimator.predict_proba(x)  # type: ignore[union-attr]
    said = np.clip(said, 1e-12, 1)
    return (
        float(log_loss(y[known], (said / said.sum(1, keepdims=True))[known], labels=classes)) if known.any() else np.nan
    )


def calibration(estimator: Estimator, x: pd.DataFrame, y: np.ndarray) -> Calibration:
    """The calibration of a classifier on rows x (n, features), y (n,). The bins have equal width, and those
    without rows are left out.
    """
    said = estimator.predict_proba(x)  # type: ignore[union-attr]
    confidence, right = said.max(1), estimator.classes_[said.argmax(1)] == y  # type: ignore[union-attr]
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = np.bincount(place, minlength=BINS)
    used = rows > 0
    mean, held = (np.bincount(place, values, BINS)[used] / rows[used] for values in (confidence, right.astype(float)))
    error = float(np.abs(mean - held) @ rows[used] / len(y))
    return Calibration(mean, held, rows[used], error)


def importances(learned: Learned, frame: pd.DataFrame, y: np.ndarray, seed: int = 0) -> list[Importance]:
    """Permutation importance (Breiman 2001) of the columns of a table, the largest first. Of more than 50
    columns, it is measured for those of the largest `sensitivities`.

    Args:
        frame: rows with the columns of the table (n, columns), of which at most 2,000 are used.
        y: the targets (n,).
        seed: the seed of the permutations, five for each column.
    """
    draw, frame = np.random.default_rng(seed), named_by_words(frame)
    if len(y) > MOST_ROWS:
        chosen = draw.choice(len(y), MOST_ROWS, replace=False)
        frame, y = frame.iloc[chosen], y[chosen]
    x = encode(learned.encoder, frame, learned.columns)
    whole = float(learned.estimator.score(x, y))
    columns = [column.name for column in learned.columns if column.kind != "left out"]
    features_of = _features_of(learned, frame, x, columns)
    if len(columns) > MOST_MEASURED:
        strength = sensitivities(learned.estimator, x)
        total = {column: float(strength[features].sum()) for column, features in features_of.items()}
        features_of = {name: features_of[name] for name in sorted(columns, key=lambda n: -total[n])[:MOST_MEASURED]}
    found = []
    # the encoder reads each row separately, so permuted values give permuted numbers
    for column, features in features_of.items():
        falls = []
        for _ in range(REPEATS if len(features) else 0):
            changed = x.copy()
            changed[features] = x[features].to_numpy()[draw.permutation(len(y))]
            falls.append(whole - float(learned.estimator.score(changed, y)))
        found.append(Importance(column, float(np.mean(falls or [0])), float(np.std(falls or [0]))))
    return sorted(found, key=lambda one: -one.fall)


def sensitivities(estimator: Estimator, x: pd.DataFrame) -> pd.Series:
    """How strongly the predictions depend on each feature (features,), to first order: the mean absolute
    gradient on rows x (n, features) of a fixed random sum of the outputs, times the feature's deviation.
    """
    module = estimator._answering().double().eval()
    rows = torch.tensor(x.to_numpy(dtype=np.float64), requires_grad=True)
    outputs = module(rows).reshape(len(rows), -1)
    mixture = torch.as_tensor(np.random.default_rng(0).normal(size=outputs.shape[1]))  # probabilities sum to one
    if not outputs.requires_grad:  # an empty network
        return pd.Series(0.0, index=x.columns)
    (gradient,) = torch.autograd.grad((outputs @ mixture).sum(), rows)
    return pd.Series(gradient.abs().mean(0).numpy() * x.to_numpy(dtype=np.float64).std(0), index=x.columns)


def _features_of(
    learned: Learned, frame: pd.DataFrame, x: pd.DataFrame, columns: Sequence[str]
) -> dict[str, list[str]]:
    """The features that each column gives, without those that are the same in all rows.

    A feature reads one column. The columns whose number has a certain binary digit are moved by a row, all at
    once, and the features that change have that digit too: 11 encodings for 1,000 columns.
    """
    numbers = np.zeros(x.shape[1], dtype=int)
    for digit in range(len(columns).bit_length()):
        moved = [column for number, column in enumerate(columns, 1) if number >> digit & 1]
        other = frame.copy()
        other[moved] = frame[moved].iloc[np.roll(np.arange(len(frame)), 1)].set_axis(frame.index)
        changed = (encode(learned.encoder, other, learned.columns).to_numpy() != x.to_numpy()).any(0)
        numbers |= changed.astype(int) << digit
    return {column: list(x.columns[numbers == number]) for number, column in enumerate(columns, 1)}
