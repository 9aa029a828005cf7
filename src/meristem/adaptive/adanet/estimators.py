"""AdaNetClassifier and AdaNetRegressor: AdaNet behind scikit-learn's contract."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.validation import validate_data
from torch import nn
from torch.nn import functional as F

from meristem.adaptive.adanet.complexity import margin_bound
from meristem.adaptive.adanet.losses import LOSSES, Loss, Softmax, Squared
from meristem.adaptive.adanet.searched import Searched
from meristem.adaptive.exporting import Probabilities, Unscaled
from meristem.adaptive.targets import ClassLabels, ScaledTarget, checked_weights
from meristem.errors import MeristemError


@dataclass(eq=False, repr=False)
class AdaNetClassifier(ClassLabels, ClassifierMixin, Searched):
    """A classifier whose layers are learned together with its weights (Cortes et al. 2017, arXiv 1607.01097).

    Each round proposes a block as deep as the network and one a layer deeper, trained with the network fixed; the better one
    stays if it lowers the objective (1/m) sum Phi(1 - y f(x)) + sum Gamma |w|, Gamma = adanet_lambda r + adanet_beta; else the search ends.

    Args:
        width: units in each layer of a block (B). adanet_lambda, adanet_beta: the price of output weights; "auto" chooses the former on a quarter of
            the rows, with one block trained on the others, and tries there whether a second layer helps (else none is proposed).
        embedding: "piecewise": blocks read each number in 8 bins too (`bins`); "auto": if a first block is better for it on held-out rows, tried where
            the rows are twice as many as the bins. max_rounds, max_depth: at most so many rounds (T), layers. min_improvement: the share of the objective by which a round
            must lower it (0 in the paper). variant: see `candidates.Options`.
        max_norm, p: Lambda and its norm in the complexity r; `project` also holds the weights to it.
        shrinkage: the share of its re-fitted weights with which a block joins; below 1, more rounds average more blocks.
        subsample: the share of the rows on which a round trains its blocks, drawn anew each round (Friedman 2002, stochastic gradient boosting);
            output weights are re-fitted to all rows.
        standardize: bring features to mean 0 and deviation 1 first; without, they are read as they are (the paper's lie in [0, 1]).
        loss: "logistic" or "exponential" for two classes (more classes: cross entropy).
        optimizer, learning_rate, max_steps, batch_size, patience: how a candidate is trained, and when it stops early.
        validation_fraction: of the rows, held out to stop each candidate where their loss is lowest and to judge it (no guarantee).
        variant="CVX": single units in closed form instead of blocks (`nodewise`); `max_steps` then counts them.
        n_jobs: re-fits at a time, in threads (candidates train side by side anyway). checkpoint: a file that keeps finished rounds; a killed fit goes on from it.
        device: where to compute, as torch names it; rows, candidates and re-fits are there.
        log_dir: a folder for TensorBoard, with every round's record.

    Attributes:
        module_: the network, a plain `nn.Module`. output_weights_, history_, classes_.
    """

    _: KW_ONLY
    loss: Literal["logistic", "exponential"] = "logistic"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from X (n_samples, n_features), y (n_samples,), weights (n_samples,).

        Raises:
            MeristemError: for options that make no sense. ValueError: for targets that are no classes.
        """
        self.check_options()
        X, y = validate_data(self, X, y, dtype=np.float64)
        numbers = self._read_labels(y)
        one_hot = F.one_hot(numbers, len(self.classes_)).double()
        targets = one_hot[:, 1:] * 2 - 1 if len(self.classes_) == 2 else one_hot
        self._search(X, targets, checked_weights(sample_weight, X), self._loss())
        return self

    def _to_answers(self) -> nn.Module:
        return Probabilities(self._loss())

    def _loss(self) -> Loss:
        return LOSSES[self.loss]() if len(self.classes_) == 2 else Softmax()

    def decision_function(self, X: Any) -> np.ndarray:
        """f(x): (n_samples,) for two classes, (n_samples, classes) for more."""
        outputs = self._outputs(X).numpy()
        return outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities for which f minimises the loss (n_samples, classes)."""
        outputs = self._outputs(X)
        return self._loss().probabilities(outputs).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The class of the largest output (n_samples,)."""
        outputs = self._outputs(X).numpy()
        best = (outputs[:, 0] > 0).astype(int) if len(self.classes_) == 2 else outputs.argmax(1)
        return self.classes_[best]

    def generalization_bound(self, X: Any, y: Any, margin: float = 1.0, confidence: float = 0.95) -> float:
        """Theorem 1's bound on the error of a two-class network, from its training set (may exceed 1).

        The complexities are those of the search, doubled for every layer (Corollary 1); they bound the units if `project` was on.

        Raises:
            MeristemError: for more than two classes, or an empty network.
        """
        parts = self.module_.parts()
        mass = sum(part.mass for part in parts)
        if len(self.classes_) != 2 or not mass:
            raise MeristemError("the bound holds for two classes and a network with at least one unit")
        signs = np.where(np.asarray(y) == self.classes_[1], 1.0, -1.0)
        below = float((signs * self.decision_function(X) / mass <= margin).mean())
        complexity = sum(part.mass / mass * part.complexity * 2**part.depth for part in parts)
        depth = max(part.depth for part in parts)
        return margin_bound(below, complexity, depth, self._samples, margin, confidence)


@dataclass(eq=False, repr=False)
class AdaNetRegressor(ScaledTarget, RegressorMixin, Searched):
    """A regressor whose layers are learned together with its weights; half the squared error (of targets with deviation
    1) in place of Phi, else as `AdaNetClassifier`."""

    _: KW_ONLY
    adanet_lambda: float | Literal["auto"] = 1e-2

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from X (n_samples, n_features), y (n_samples,), weights (n_samples,).

        Raises:
            MeristemError: for options that make no sense.
        """
        self.check_options()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        weight = checked_weights(sample_weight, X)
        self._search(X, self._read_target(y, weight), weight, Squared())
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The predicted numbers (n_samples,)."""
        return self._unscaled(self._outputs(X))

    def _to_answers(self) -> nn.Module:
        return Unscaled(self.target_mean_, self.target_scale_)
