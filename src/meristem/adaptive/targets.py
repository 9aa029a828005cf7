"""Targets as estimators store them: classes by number, numbers at scale 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor

from meristem.adaptive.limits import check_target
from meristem.errors import MeristemError

LARGEST_MULTIPLE = 1000


def repetitions(weight: np.ndarray) -> np.ndarray | None:
    """The number of repetitions of each row from positive weights (n_samples,), if they are whole multiples
    of the smallest one, or None.
    """
    times = weight / weight.min()
    if times.max() <= LARGEST_MULTIPLE and np.allclose(times, np.round(times), rtol=1e-9, atol=0):
        return np.round(times).astype(int)
    return None


def counted_rows(weight: np.ndarray) -> float:
    """The number of rows that weights (n_samples,) represent: m of the complexities.

    Weights are relative, so a common factor changes nothing. Whole multiples of the smallest one count as
    repeated rows, as in scikit-learn. Other weights give the importance of a row, and each row of positive
    weight counts as one.
    """
    used = weight[weight > 0]
    times = repetitions(used)
    return float(len(used) if times is None else times.sum())


def checked_weights(sample_weight: Any, X: np.ndarray) -> np.ndarray:
    """The weights of the rows (n_samples,), 1 by default.

    Raises:
        MeristemError: if all weights are zero, or all but one.
    """
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    used = int((weight > 0).sum())
    if used < min(2, len(weight)):
        which = "all sample weights" if not used else "the sample weights of all rows but one"
        raise MeristemError(f"{which} are zero; at least {'two rows' if used else 'one row'} must count")
    return weight


def check_numbers(y: Any) -> None:
    """Check that the targets of a regression (n_samples,) are no words.

    Raises:
        MeristemError: otherwise.
    """
    values = np.asarray(y, dtype=None if hasattr(y, "dtype") else object).ravel()
    word = next((value for value in values if isinstance(value, str)), None) if values.dtype.kind in "OUST" else None
    if word is not None:
        raise MeristemError(f"a regression needs numbers, got words such as {str(word)!r}; convert them first")


def check_labels(y: np.ndarray) -> None:
    """Check that labels (n_samples,) are all there, and can be sorted.

    Raises:
        MeristemError: otherwise.
    """
    if y.dtype != object:
        return
    missing = sum(label is None or label != label for label in y.ravel())  # NaN differs from itself
    if missing:
        raise MeristemError(f"{missing} of {len(y)} labels are missing (None or NaN); leave these rows out")
    kinds = sorted({type(label).__name__ for label in y.ravel()})
    if len(kinds) > 1 and "str" in kinds:
        raise MeristemError(
            f"the labels are of several types ({', '.join(kinds)}); give all as words, or all as numbers"
        )


class ClassLabels:
    """The labels of a classifier: `classes_`, and their form in files."""

    classes_: np.ndarray

    def _read_labels(self, y: np.ndarray) -> Tensor:
        """The number of each row's class (n_samples,). It sets `classes_`.

        Raises:
            MeristemError: if some labels are missing, or if they are of several types.
            ValueError: if y does not hold classes, or only one class.
        """
        check_labels(y)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes, found 1 class: {self.classes_.tolist()[0]!r}")
        return torch.as_tensor(numbers, device="cpu")

    def _targets(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist()}

    def _restore_targets(self, config: dict[str, Any]) -> None:
        self.classes_ = np.array(config["classes"])


class ScaledTarget:
    """The target of a regressor at mean 0 and standard deviation 1, and its form in files."""

    target_mean_: float
    target_scale_: float

    def _read_target(self, y: np.ndarray, weight: np.ndarray | None = None) -> Tensor:
        """The scaled target (n_samples, 1), float64.

        Raises:
            MeristemError: if its numbers have no squares in float64.
        """
        check_target(y, "y")
        self.target_mean_ = float(np.average(y, weights=weight))
        self.target_scale_ = float(np.average((y - self.target_mean_) ** 2, weights=weight) ** 0.5) or 1.0
        return torch.as_tensor((y - self.target_mean_) / self.target_scale_, dtype=torch.float64, device="cpu")[:, None]

    def _unscaled(self, outputs: Tensor) -> np.ndarray:
        """Outputs (n_samples, 1) in the scale of the target (n_samples,)."""
        return outputs[:, 0].double().numpy() * self.target_scale_ + self.target_mean_

    def _targets(self) -> dict[str, Any]:
        return {"target_mean": self.target_mean_, "target_scale": self.target_scale_}

    def _restore_targets(self, config: dict[str, Any]) -> None:
        self.target_mean_, self.target_scale_ = config["target_mean"], config["target_scale"]
