"""AdaNetClassifier and AdaNetRegressor: AdaNet with scikit-learn's interface."""

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
from meristem.adaptive.targets import ClassLabels, ScaledTarget, check_numbers, checked_weights
from meristem.errors import MeristemError


@dataclass(eq=False, repr=False)
class AdaNetClassifier(ClassLabels, ClassifierMixin, Searched):
    """A classifier whose layers are learned together with its weights (Cortes et al. 2017, arXiv:1607.01097).

    Each round proposes two blocks, one as deep as the network and one a layer deeper. They are trained with
    the network fixed. The better block joins if it lowers the objective (1/m) sum Phi(1 - y f(x)) + sum Gamma
    |w|, with Gamma = adanet_lambda r + adanet_beta. Otherwise the search ends.

    Args:
        width: the units in each layer of a block (B).
        adanet_lambda, adanet_beta: the terms of the price of output weights. "auto" chooses `adanet_lambda`
            on a quarter of the rows, with one block trained on the other rows. It also tests there whether a
            second layer helps, and proposes none if it does not.
        embedding: "none", or "piecewise" if blocks read each number in 8 bins too (`bins`). "auto" uses the
            bins if they improve a first block on held-out rows. It tries them only if there are at least
            twice as many rows as bins.
        max_rounds: the number of rounds (T), at most.
        max_depth: the number of layers, at most.
        min_improvement: the share of the objective by which a round must lower it. It is 0 in the paper.
        variant: the variant of the algorithm: see `candidates.Options`. "CVX" adds single units in closed
            form instead of blocks (`nodewise`), and `max_steps` counts them.
        max_norm: Lambda, the largest norm of a unit's weights in the complexity r.
        p: the exponent of that norm.
        project: also keep the weights of each unit within `max_norm`.
        shrinkage: the share of its fitted weights with which a block joins. Below 1, more rounds average more
            blocks.
        subsample: the share of the rows on which a round trains its blocks. They are drawn again in each
            round (Friedman 2002, stochastic gradient boosting). Output weights are fitted on all rows.
        standardize: scale features to mean 0 and standard deviation 1. If False, they are read unscaled. The
            paper's features lie in [0, 1].
        connection_dropout: the share of connections to earlier blocks that `variant="D"` drops.
        loss: "logistic" or "exponential" for two classes. More classes use the cross entropy.
        optimizer, learning_rate, max_steps, batch_size: how a candidate is trained.
        patience: the number of checks without a gain after which the training of a candidate stops.
        validation_fraction: the share of rows that is held out. The training of a candidate stops where their
            loss is lowest, and they judge the candidate. The paper's guarantees do not hold then.
        n_jobs: the number of fits at the same time, in threads. Candidates always train together.
        device: the device that computes, by its name in torch. Rows, candidates and fits are there.
        random_state, verbose: as everywhere in scikit-learn.
        checkpoint: a file that keeps the finished rounds, and from which an interrupted fit continues.
        log_dir: a folder to which the record of every round is written for TensorBoard.

    Attributes:
        module_: the network, a plain `nn.Module`.
        output_weights_: the output weights of each block (width, outputs).
        history_: a record of each round.
        classes_: the class labels.
    """

    _: KW_ONLY
    loss: Literal["logistic", "exponential"] = "logistic"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows X (n_samples, n_features) with labels y (n_samples,) and weights (n_samples,).

        Raises:
            MeristemError: if an option is invalid, if labels are missing, or if all sample weights
                but one are zero.
            ValueError: if y does not hold classes, or only one class.
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
        """The outputs f(x): (n_samples,) for two classes, (n_samples, classes) for more."""
        outputs = self._outputs(X).numpy()
        return outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict_proba(self, X: Any) -> np.ndarray:
        """The class probabilities for which f minimises the expected loss (n_samples, classes)."""
        outputs = self._outputs(X)
        return self._loss().probabilities(outputs).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The class with the largest output (n_samples,)."""
        outputs = self._outputs(X).numpy()
        best = (outputs[:, 0] > 0).astype(int) if len(self.classes_) == 2 else outputs.argmax(1)
        return self.classes_[best]

    def generalization_bound(self, X: Any, y: Any, margin: float = 1.0, confidence: float = 0.95) -> float:
        """The bound of Theorem 1 on the error of a two-class network, from its training set. It can exceed 1.

        The complexities are those of the search, doubled for every layer (Corollary 1). They bound the units
        if `project` was set.

        Raises:
            MeristemError: for more than two classes, or for an empty network.
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
    """A regressor whose layers are learned together with its weights. It takes half the squared error in
    place of Phi, on targets scaled to standard deviation 1. Everything else is as in `AdaNetClassifier`.
    """

    _: KW_ONLY
    adanet_lambda: float | Literal["auto"] = 1e-2

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows X (n_samples, n_features) with targets y (n_samples,) and weights (n_samples,).

        Raises:
            MeristemError: if an option is invalid, if y holds words, or if all sample weights
                but one are zero.
        """
        self.check_options()
        check_numbers(y)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        weight = checked_weights(sample_weight, X)
        self._search(X, self._read_target(y, weight), weight, Squared())
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The predicted numbers (n_samples,)."""
        return self._unscaled(self._outputs(X))

    def _to_answers(self) -> nn.Module:
        return Unscaled(self.target_mean_, self.target_scale_)
