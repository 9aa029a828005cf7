"""EnergyNetClassifier and EnergyNetRegressor: structure from the energy, without labels, then an ordinary
network.
"""

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
from meristem.adaptive.targets import ClassLabels, ScaledTarget, check_labels, check_numbers, checked_weights
from meristem.adaptive.tensors import tensor_of


@dataclass(eq=False, repr=False)
class EnergyNetClassifier(ClassLabels, ClassifierMixin, Structured):
    """A classifier that learns its widths and depth from the energy of the data, without labels.

    Stage one learns layers, each an infinite RBM on the outputs of the one below. Stage two adds a linear
    output and trains the network by gradient descent from the weights of stage one.

    Args:
        beta: the price of width in stage one, above 1.
        depth_penalty: the price of a further layer, in nats per row.
        max_layers: the number of layers, at most.
        quantile: a layer is wide enough to contain z for this share of the data.
        visible: "binary" for inputs in [0, 1], "gaussian" for real ones, which are standardised. "auto"
            decides by the data.
        categories: one-hot features, which stage one reads as categorical units. "auto" finds runs of
            adjacent columns of zeros and ones with exactly one 1 in each row. Sizes such as (3, 4) say that
            they are the last seven columns.
        structure_iter, structure_learning_rate, gibbs_steps, l1: `n_iter`, `learning_rate`, `gibbs_steps` and
            `l1` of the infinite RBM.
        initial: "energy" starts stage two from the weights of stage one, "random" uses only its structure.
        widths: "learned", or "random" for random widths with about as many parameters (for ablations).
        learning_rate, weight_decay, batch_size, max_epochs, validation_fraction, n_iter_no_change: the
            training of stage two.
        device: the device that computes, by its name in torch.
        random_state, verbose: as everywhere in scikit-learn.
        checkpoint: a directory in which stage one keeps its state. With a whole number as `random_state`, an
            interrupted fit continues from there.
        unlabelled: the label of rows without a label, as in scikit-learn's semi-supervised estimators. The
            structure is learned from these rows too. If only one other label occurs, it is a class. None
            takes every label as a class.

    Attributes:
        layers_: the learned layers.
        widths_: their sizes.
        network_: the trained `nn.Sequential`.
        classes_: the class labels.
        history_: a record of each pass of stage two.
    """

    _: KW_ONLY
    unlabelled: int | None = -1

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the network to the rows with a label, after learning the structure from all rows if
        `fit_structure` was not called.

        Args:
            X: the rows (n_samples, n_features).
            y: the labels (n_samples,).
            sample_weight: the weights of the rows (n_samples,). They apply to stage two. If all are whole
                multiples of the smallest one, they apply to both stages.

        Raises:
            MeristemError: if an option is invalid, if labels are missing, or if all sample weights
                but one are zero.
            ValueError: if y does not hold classes, or only one class.
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
        """A mask of the rows without a label (n_samples,). If there is only one other label, `unlabelled` is
        a class too.
        """
        if self.unlabelled is None:
            return np.zeros(len(y), dtype=bool)
        without = y == self.unlabelled
        check_labels(y[~without])
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
    """A regressor that learns its widths and depth without targets. Its options are those of
    `EnergyNetClassifier`.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the network to X (n_samples, n_features) and y (n_samples,), after learning the structure if
        `fit_structure` was not called.

        Args:
            sample_weight: the weights of the rows (n_samples,). They apply to stage two. If all are whole
                multiples of the smallest one, they apply to both stages.

        Raises:
            MeristemError: if an option is invalid, if y holds words, or if all sample weights
                but one are zero.
        """
        self.check_options()
        check_numbers(y)
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
