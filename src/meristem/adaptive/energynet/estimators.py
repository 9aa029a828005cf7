"""EnergyNetClassifier and EnergyNetRegressor: structure from the energy, without labels; then an ordinary network."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.validation import validate_data
from torch import nn

from meristem.adaptive.energynet.fitted import FLOATS
from meristem.adaptive.energynet.rows import weighted_rows
from meristem.adaptive.energynet.structured import Structured
from meristem.adaptive.exporting import Probabilities, Unscaled
from meristem.adaptive.targets import ClassLabels, ScaledTarget, checked_weights
from meristem.adaptive.tensors import tensor_of


@dataclass(eq=False, repr=False)
class EnergyNetClassifier(ClassLabels, ClassifierMixin, Structured):
    """A classifier whose widths and depth are learned from the data's energy, without labels.

    Stage one learns layers (infinite RBMs, one on the other); stage two puts a linear output on top and trains the
    network by gradient descent from the weights found.

    Args:
        beta: the price of width in stage one (above 1). depth_penalty: the price of a further layer, in nats per row.
        max_layers: at most so many. quantile: a layer is wide enough to hold z for so much of the data.
        visible: "binary" for inputs in [0, 1], "gaussian" for real ones (standardised); "auto" looks.
        categories: one-hot features, which stage one reads as categorical units: "auto" finds runs of neighbouring columns of zeros and
            ones of which each row has exactly one; sizes, such as (3, 4), say that they are the last seven.
        structure_iter, structure_learning_rate, gibbs_steps, l1: the infinite RBM's `n_iter`, `learning_rate`, ...
        initial: start stage two from the energy's weights, or "random" (structure only).
        widths: "random" takes as many parameters in widths drawn at random (for ablations).
        learning_rate, weight_decay, batch_size, max_epochs, validation_fraction, n_iter_no_change: of stage two.
        checkpoint: a directory in which stage one keeps its state; with a whole number as `random_state`, a fit that
            was killed goes on from there.

        unlabelled: the label of rows that have none, as scikit-learn's semi-supervised estimators have it: the structure is learned from
            them too. If only one other label occurs it is a class; None: every label is one.

    Attributes:
        layers_: the learned layers. widths_: their sizes. network_: the trained `nn.Sequential`. classes_, history_.
    """

    _: KW_ONLY
    unlabelled: int | None = -1

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn the structure from X (n_samples, n_features), if `fit_structure` has not, and then the network from the rows that have a label.

        Args:
            y: (n_samples,). sample_weight: (n_samples,); of stage two, and whole multiples of the smallest one of both stages.

        Raises:
            MeristemError: for options that make no sense. ValueError: for targets that are no classes.
        """
        self.check_options()
        X, y = validate_data(self, X, y, dtype=FLOATS, reset=not self._has_structure)
        weight = checked_weights(sample_weight, X)
        labelled = ~self._unlabelled(y)
        numbers = np.full(len(y), -1)
        numbers[labelled] = self._read_labels(y[labelled]).numpy()
        rows, numbers, weight = weighted_rows(X, numbers, weight)
        if not self._has_structure:
            self._structure(rows)
        labelled = numbers >= 0
        targets = tensor_of(numbers[labelled], device=self.device)
        self._fit_network(rows[labelled], targets, weight[labelled], len(self.classes_))
        return self

    def _unlabelled(self, y: np.ndarray) -> np.ndarray:
        """Which rows have no label (n_samples,). With one other label only, it is a class like that one."""
        if self.unlabelled is None:
            return np.zeros(len(y), dtype=bool)
        without = y == self.unlabelled
        return without if len(np.unique(y[~without])) > 1 else np.zeros(len(y), dtype=bool)

    def _to_answers(self) -> nn.Module:
        return Probabilities()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n_samples, classes)."""
        return torch.softmax(self._outputs(X), -1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class (n_samples,)."""
        best = self._outputs(X).argmax(1).numpy()
        return self.classes_[best]


@dataclass(eq=False, repr=False)
class EnergyNetRegressor(ScaledTarget, RegressorMixin, Structured):
    """A regressor whose widths and depth are learned without targets; options as in `EnergyNetClassifier`."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn the structure from X (n_samples, n_features), if `fit_structure` has not, and then the network from X and y (n_samples,).

        Args:
            sample_weight: (n_samples,); of stage two, and whole multiples of the smallest one of both stages.

        Raises:
            MeristemError: for options that make no sense.
        """
        self.check_options()
        reset = not self._has_structure
        X, y = validate_data(self, X, y, dtype=FLOATS, y_numeric=True, ensure_min_samples=2, reset=reset)
        rows, y, weight = weighted_rows(X, y, checked_weights(sample_weight, X))
        if not self._has_structure:
            self._structure(rows)
        self._fit_network(rows, self._read_target(y, weight).float().to(self.device), weight, 1)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The predicted numbers (n_samples,)."""
        return self._unscaled(self._outputs(X))

    def _to_answers(self) -> nn.Module:
        return Unscaled(self.target_mean_, self.target_scale_)
