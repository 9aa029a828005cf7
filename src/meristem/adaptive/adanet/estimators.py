"""AdaNetClassifier and AdaNetRegressor: AdaNet behind scikit-learn's contract."""

from __future__ import annotations

import copy
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from meristem.adaptive.adanet.bins import Bins
from meristem.adaptive.adanet.candidates import Options
from meristem.adaptive.adanet.complexity import margin_bound
from meristem.adaptive.adanet.losses import LOSSES, Loss, Softmax, Squared
from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.adanet.nodewise import NodeOptions, NodewiseModule, grow_nodes
from meristem.adaptive.adanet.price import PRICES, Rows, chosen_start
from meristem.adaptive.adanet.search import Search
from meristem.adaptive.exporting import Probabilities, Unscaled, export
from meristem.adaptive.files import load_estimator, save_estimator
from meristem.adaptive.options import AT_LEAST_0, AT_LEAST_1, FRACTION, POSITIVE, SHARE, Range, check_options
from meristem.adaptive.targets import ClassLabels, ScaledTarget, checked_weights, counted_rows
from meristem.adaptive.tensorboard import Scalars
from meristem.adaptive.tensors import tensor_of
from meristem.errors import MeristemError


@dataclass(eq=False, repr=False)
class _AdaNet(BaseEstimator):
    """What both estimators share."""

    _: KW_ONLY
    width: int = 64
    adanet_lambda: float | Literal["auto"] = 1e-3
    adanet_beta: float = 0.0
    embedding: Literal["none", "piecewise", "auto"] = "none"
    max_rounds: int = 10
    max_depth: int = 3
    min_improvement: float = 1e-3
    variant: Literal["base", "R", "P", "D", "SD", "CVX"] = "base"
    max_norm: float = 1.0
    p: float = 2.0
    project: bool = False
    shrinkage: float = 1.0
    standardize: bool = True
    connection_dropout: float = 0.1
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-2
    max_steps: int = 150
    batch_size: int = 512
    patience: int = 4
    validation_fraction: float = 0.0
    n_jobs: int | None = None
    random_state: Any = None
    verbose: int = 0
    checkpoint: str | None = None
    log_dir: str | None = None

    _ranges: ClassVar[dict[str, Range]] = {
        "width": AT_LEAST_1,
        "adanet_lambda": AT_LEAST_0,
        "adanet_beta": AT_LEAST_0,
        "max_rounds": AT_LEAST_0,
        "max_depth": AT_LEAST_1,
        "min_improvement": AT_LEAST_0,
        "max_norm": POSITIVE,
        "p": AT_LEAST_1,
        "shrinkage": SHARE,
        "connection_dropout": FRACTION,
        "learning_rate": POSITIVE,
        "max_steps": AT_LEAST_0,
        "batch_size": AT_LEAST_1,
        "patience": AT_LEAST_1,
        "validation_fraction": FRACTION,
    }

    def check_options(self) -> None:
        """Raises MeristemError for options that make no sense."""
        check_options(self, self._ranges)

    def _search(self, X: np.ndarray, targets: Tensor, weights: np.ndarray, loss: Loss) -> None:
        x, weight = tensor_of(X, torch.float64), tensor_of(weights)
        used = weight > 0
        x, targets, weight = x[used], targets[used], weight[used]
        shares = weight / weight.sum()
        mean, scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
        if self.standardize:
            mean = shares @ x
            deviation = (shares @ (x - mean).square()).sqrt()
            scale = torch.where(deviation > 1e-12, deviation, scale)
        self._samples = counted_rows(weights)
        if self.variant == "CVX":
            self._search_nodes(NodewiseModule(mean, scale), x, targets, shares, loss)
            return
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        prices = PRICES if self.adanet_lambda == "auto" else (float(self.adanet_lambda),)
        rows = Rows(x, targets, weight, self._samples)
        modules = self._starts(mean, scale, x, targets.shape[1])
        module, self.price_ = chosen_start(modules, rows, prices, loss, self._options(0.0), seed)
        self._report(f"adanet_lambda {self.price_:g}, {module.num_bins} bins")
        held = None
        if self.validation_fraction:
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
            held = order[: max(1, int(self.validation_fraction * len(x)))]
        options = self._options(self.price_)
        search = Search(
            module,
            x,
            targets,
            weight,
            self._samples,
            loss,
            options,
            max_rounds=self.max_rounds,
            max_depth=self.max_depth,
            min_improvement=self.min_improvement,
            seed=seed,
            n_jobs=self.n_jobs,
            rows_held_out=held,
            checkpoint=self.checkpoint,
            log_dir=self.log_dir,
            report=self._report,
        )
        search.run()
        self.module_, self.history_ = search.module, search.history

    def _starts(self, mean: Tensor, scale: Tensor, x: Tensor, outputs: int) -> list[AdaNetModule]:
        """Networks without blocks, to choose from: they read numbers as they are, or encoded in bins too."""
        plain = AdaNetModule(mean, scale, outputs)
        bins = None if self.embedding == "none" else Bins.of(x)
        if bins is None or (self.embedding == "auto" and bins.count > len(x) / 2):
            return [plain]
        binned = AdaNetModule(mean, scale, outputs, bins)
        return [binned] if self.embedding == "piecewise" else [plain, binned]

    def _search_nodes(self, module: NodewiseModule, x: Tensor, targets: Tensor, shares: Tensor, loss: Loss) -> None:
        if targets.shape[1] != 1:
            raise MeristemError(f"variant='CVX' is for two classes or regression, found {targets.shape[1]} classes")
        if self.adanet_lambda == "auto":
            raise MeristemError("variant='CVX' needs a number as adanet_lambda")
        if self.embedding != "none":
            raise MeristemError(f"variant='CVX' reads numbers as they are, got embedding={self.embedding!r}")
        options = NodeOptions(
            self.max_steps, self.max_depth, self.adanet_lambda, self.adanet_beta, self.max_norm, self.p
        )
        self.history_ = grow_nodes(module, x, targets, shares, self._samples, loss, options, self._report)
        with Scalars(self.log_dir) as scalars:
            for step, record in enumerate(self.history_):
                scalars.write(record, step)
        self.module_ = module

    def _options(self, price: float) -> Options:
        names = ("width", "adanet_beta", "max_norm", "p", "project", "shrinkage", "variant", "connection_dropout", "max_steps",
                 "batch_size", "learning_rate", "optimizer", "patience")  # fmt: skip
        return Options(adanet_lambda=price, **{name: getattr(self, name) for name in names})

    def _report(self, line: str) -> None:
        if self.verbose:
            print(line, file=sys.stderr, flush=True)

    def _outputs(self, X: Any) -> Tensor:
        check_is_fitted(self, "module_")
        X = validate_data(self, X, reset=False, dtype=np.float64)
        with torch.no_grad():
            return self.module_(tensor_of(X))

    @property
    def output_weights_(self) -> list[np.ndarray]:
        """The weights of each part (block, or layer of single units) at the output (width, outputs)."""
        check_is_fitted(self, "module_")
        return [weights.numpy() for weights in self.module_.output_weights]

    @property
    def num_parameters_(self) -> int:
        """Parameters of the learned network, output weights that are zero left out."""
        check_is_fitted(self, "module_")
        return self.module_.num_used_parameters

    def summary(self) -> str:
        """The learned network, a line for each block."""
        check_is_fitted(self, "module_")
        lines = [f"{'part':<6} {'depth':<6} {'width':<6} {'used':<6} {'|w|_1':<10} r"]
        lines += [
            f"{number:<6} {p.depth:<6} {p.width:<6} {p.used:<6} {p.mass:<10.4g} {p.complexity:.4g}"
            for number, p in enumerate(self.module_.parts(), 1)
        ]
        return "\n".join(
            [*lines, f"objective  {self.history_[-1]['objective']:.5f}", f"parameters {self.num_parameters_}"]
        )

    def save(self, out: str | Path, overwrite: bool = False) -> None:
        """Write a directory of safetensors and JSON (no pickle); `load` reads it.

        Raises:
            MeristemError: if `out` exists.
        """
        check_is_fitted(self, "module_")
        config = {
            "outputs": self.module_.num_outputs,
            "layout": self.module_.layout(),
            "bins": self.module_.num_bins,
            "history": self.history_,
            "samples": self._samples,
            "price": getattr(self, "price_", None),
            **self._targets(),
        }
        save_estimator(self, out, self.module_.state_dict(), config, overwrite)

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """What `save` wrote. Raises MeristemError if it is something else."""
        estimator, tensors, config = load_estimator(cls, source, None)
        shape = config["layout"], config["features"], config["outputs"]
        if estimator.variant == "CVX":
            estimator.module_ = NodewiseModule.of_layout(*shape)
        else:
            estimator.module_ = AdaNetModule.of_layout(*shape, config.get("bins", 0))
        estimator.module_.load_state_dict(tensors)
        estimator.history_, estimator._samples = config["history"], config["samples"]
        estimator.price_ = config.get("price", estimator.adanet_lambda)
        estimator._restore_targets(config)
        return estimator

    def export(self, out: str | Path, overwrite: bool = False) -> Path:
        """Write the network as ONNX (`.onnx`) or by torch.export (`.pt2`): see `exporting.export`."""
        return export(self, out, overwrite)

    def _answering(self) -> nn.Module:
        """Inputs to answers as one module."""
        return nn.Sequential(copy.deepcopy(self.module_), self._to_answers())

    def _to_answers(self) -> nn.Module:
        raise NotImplementedError

    def _targets(self) -> dict[str, Any]:
        raise NotImplementedError

    def _restore_targets(self, config: dict[str, Any]) -> None:
        raise NotImplementedError


@dataclass(eq=False, repr=False)
class AdaNetClassifier(ClassLabels, ClassifierMixin, _AdaNet):
    """A classifier whose layers are learned together with its weights (Cortes et al. 2017, arXiv 1607.01097).

    Each round proposes a block as deep as the network and one a layer deeper, trained with the network fixed; the better one
    stays if it lowers the objective (1/m) sum Phi(1 - y f(x)) + sum Gamma |w|, Gamma = adanet_lambda r + adanet_beta; else the search ends.

    Args:
        width: units in each layer of a block (B). adanet_lambda, adanet_beta: the price of output weights; "auto" chooses the former on a quarter of
            the rows, with one block trained on the others.
        embedding: "piecewise": blocks read each number in 8 bins too (`bins`); "auto": if a first block is better for it on held-out rows, tried where
            the rows are twice as many as the bins. max_rounds, max_depth: at most so many rounds (T), layers. min_improvement: the share of the objective by which a round
            must lower it (0 in the paper). variant: see `candidates.Options`.
        max_norm, p: Lambda and its norm in the complexity r; `project` also holds the weights to it.
        shrinkage: the share of its re-fitted weights with which a block joins; below 1, more rounds average more blocks.
        standardize: bring features to mean 0 and deviation 1 first; without, they are read as they are (the paper's lie in [0, 1]).
        loss: "logistic" or "exponential" for two classes (more classes: cross entropy).
        optimizer, learning_rate, max_steps, batch_size, patience: how a candidate is trained, and when it stops early.
        validation_fraction: of the rows, held out to stop each candidate where their loss is lowest and to judge it (no guarantee).
        variant="CVX": single units in closed form instead of blocks (`nodewise`); `max_steps` then counts them.
        n_jobs: re-fits at a time, in threads (candidates train side by side anyway). checkpoint: a file that keeps finished rounds; a killed fit goes on from it.
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
class AdaNetRegressor(ScaledTarget, RegressorMixin, _AdaNet):
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
