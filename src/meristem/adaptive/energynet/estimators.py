"""EnergyNetClassifier and EnergyNetRegressor: structure from the energy, without labels; then an ordinary network."""

from __future__ import annotations

import copy
import itertools
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from meristem.adaptive.energynet.copies import equal_columns, shared_out
from meristem.adaptive.energynet.rows import sorted_rows, weighted_rows
from meristem.adaptive.energynet.structure import StructureOptions, layer_tensors, learn_structure, restored_layers
from meristem.adaptive.exporting import Answering, Probabilities, Unscaled, export
from meristem.adaptive.files import load_estimator, save_estimator
from meristem.adaptive.mlp import Training, mlp, train_supervised
from meristem.adaptive.options import AT_LEAST_0, AT_LEAST_1, FRACTION, POSITIVE, SHARE, Range, check_options
from meristem.adaptive.rbm.visible import in_unit_interval
from meristem.adaptive.targets import ClassLabels, ScaledTarget, checked_weights
from meristem.adaptive.tensors import generator_of, tensor_of

FLOATS = [np.float32, np.float64]


@dataclass(eq=False, repr=False)
class _EnergyNet(BaseEstimator):
    """What both estimators share: stage one, the network that follows from it, files."""

    _: KW_ONLY
    beta: float = 2.0
    depth_penalty: float = 0.1
    max_layers: int = 3
    quantile: float = 0.99
    visible: Literal["auto", "binary", "gaussian"] = "auto"
    structure_iter: int = 40
    structure_learning_rate: float = 0.05
    gibbs_steps: int = 5
    l1: float = 0.0
    initial: Literal["energy", "random"] = "energy"
    widths: Literal["learned", "random"] = "learned"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 64
    max_epochs: int = 200
    validation_fraction: float = 0.1
    n_iter_no_change: int = 20
    device: str = "cpu"
    random_state: Any = None
    verbose: int = 0
    checkpoint: str | None = None

    _ranges: ClassVar[dict[str, Range]] = {
        "depth_penalty": POSITIVE,  # the sum over depths exists then
        "max_layers": AT_LEAST_1,
        "quantile": SHARE,
        "structure_iter": AT_LEAST_0,
        "structure_learning_rate": POSITIVE,
        "gibbs_steps": AT_LEAST_1,
        "l1": AT_LEAST_0,
        "learning_rate": POSITIVE,
        "weight_decay": AT_LEAST_0,
        "batch_size": AT_LEAST_1,
        "max_epochs": AT_LEAST_0,
        "validation_fraction": FRACTION,
        "n_iter_no_change": AT_LEAST_1,
    }

    def check_options(self) -> None:
        """Raises MeristemError for options that make no sense."""
        check_options(self, self._ranges)

    def fit_structure(self, X: Any) -> Self:
        """Stage one alone: learn the layers from X (n_samples, n_features), which carry no labels; `fit` then keeps them.

        Raises:
            MeristemError: for options that make no sense, or beta <= 1.
        """
        self.check_options()
        rows: Any = validate_data(self, X, dtype=FLOATS, ensure_min_samples=2)
        self._structure(rows)
        self._structure_given = True
        return self

    def _structure(self, X: np.ndarray) -> None:
        self.visible_ = ("binary" if in_unit_interval(X) else "gaussian") if self.visible == "auto" else self.visible
        if self.visible_ == "binary":
            self.mean_, self.scale_ = np.zeros(X.shape[1]), np.ones(X.shape[1])
        else:
            deviation = X.std(0)
            self.mean_, self.scale_ = X.mean(0), np.where(deviation > 0, deviation, 1.0)
        machine = {
            "beta": self.beta,
            "penalty": "constant",
            "learning_rate": self.structure_learning_rate,
            "n_iter": self.structure_iter,
            "gibbs_steps": self.gibbs_steps,
            "batch_size": self.batch_size,
            "l1": self.l1,
            "visible": self.visible_,
            "device": self.device,
            "verbose": max(0, self.verbose - 1),  # a line for each layer; a bar for each machine if more is asked for
        }
        options = StructureOptions(
            machine, self.depth_penalty, self.max_layers, self.quantile, checkpoint=self.checkpoint
        )
        self._generator = generator_of(self.random_state, self.device)
        scaled = self._scaled(X)
        distinct, self._which = equal_columns(scaled)
        rows = sorted_rows(scaled[:, distinct])
        self.layers_ = learn_structure(rows, options, self._generator, self._report)
        self.widths_ = [layer.width for layer in self.layers_]

    @property
    def _has_structure(self) -> bool:
        """Whether `fit_structure` was called: the layers stay."""
        return getattr(self, "_structure_given", False)

    def _report(self, line: str) -> None:
        if self.verbose:
            print(line, file=sys.stderr, flush=True)

    def _scaled(self, X: np.ndarray) -> Tensor:
        return tensor_of((X - self.mean_) / self.scale_, torch.float32, self.device)

    def _fit_network(self, X: np.ndarray, y: Tensor, row_weight: np.ndarray, outputs: int) -> None:
        """Stage two, on the layers that are there."""
        if self._has_structure:
            self._generator = generator_of(self.random_state, self.device)
        sizes = [X.shape[1], *self._network_widths(X.shape[1], outputs), outputs]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._generator.initial_seed())
            network = mlp(sizes).to(self.device)
        if self.initial == "energy" and self.widths == "learned":
            linears = [module for module in network if isinstance(module, nn.Linear)]
            weights = [layer.machine.weights for layer in self.layers_]
            weights[0] = shared_out(weights[0], self._which)
            for linear, weight, layer in zip(linears, weights, self.layers_, strict=False):
                linear.load_state_dict({"weight": weight, "bias": layer.machine.hidden_bias})
        training = Training(
            self.learning_rate,
            self.weight_decay,
            self.batch_size,
            self.max_epochs,
            self.validation_fraction,
            self.n_iter_no_change,
        )
        shares = tensor_of(row_weight, torch.float32, self.device)
        self.history_ = train_supervised(network, self._scaled(X), y, shares, training, self._generator)
        self.network_ = network.double()
        self.n_iter_ = len(self.history_)

    def _network_widths(self, inputs: int, outputs: int) -> list[int]:
        """The learned widths, or for the ablation random ones of (about) as many parameters."""
        if self.widths == "learned":
            return self.widths_
        budget = _parameters([inputs, *self.widths_, outputs])
        shares = torch.rand(len(self.widths_), generator=self._generator, device=self.device).cpu() + 0.2
        widths, low, high = self.widths_, 0.0, float(budget)
        for _ in range(60):
            factor = (low + high) / 2
            widths = [max(1, round(float(share) * factor)) for share in shares]
            low, high = (low, factor) if _parameters([inputs, *widths, outputs]) > budget else (factor, high)
        return widths

    def _outputs(self, X: Any) -> Tensor:
        check_is_fitted(self, "network_")
        X = validate_data(self, X, reset=False, dtype=FLOATS)
        with torch.no_grad():
            return self.network_(self._scaled(X).double()).cpu()

    @property
    def num_parameters_(self) -> int:
        """Parameters of the supervised network."""
        check_is_fitted(self, "network_")
        return sum(p.numel() for p in self.network_.parameters())

    def summary(self) -> str:
        """The learned structure, a line for each layer."""
        check_is_fitted(self, "layers_")
        copies = len(self.mean_) - len(self.layers_[0].machine.visible_bias)
        said = f", {copies} of them copies of others" if copies else ""
        lines = [f"inputs      {len(self.mean_)} ({self.visible_}){said}"]
        for number, layer in enumerate(self.layers_, 1):
            said = "log-likelihood" if number == 1 else "gain"
            lines.append(
                f"layer {number:<5} {layer.width} units of {layer.allocated} grown; {said} {layer.gain:.3f} nats"
            )
        if hasattr(self, "network_"):
            lines.append(f"parameters  {self.num_parameters_}")
        return "\n".join(lines)

    def save(self, out: str | Path, overwrite: bool = False) -> None:
        """Write a directory of safetensors and JSON (no pickle); `load` reads it.

        Raises:
            MeristemError: if `out` exists.
        """
        check_is_fitted(self, "network_")
        tensors = {f"network.{name}": t for name, t in self.network_.state_dict().items()}
        tensors |= layer_tensors(self.layers_)
        tensors |= {"mean": torch.as_tensor(self.mean_), "scale": torch.as_tensor(self.scale_)}
        config = {
            "sizes": [module.in_features for module in self.network_ if isinstance(module, nn.Linear)],
            "layers": [layer.record() for layer in self.layers_],
            "history": self.history_,
            "visible": self.visible_,
            **self._targets(),
        }
        save_estimator(self, out, tensors, config, overwrite)

    @classmethod
    def load(cls, source: str | Path, device: str | None = None) -> Self:
        """What `save` wrote.

        Args:
            device: where it is to compute; None: where it did, or on the CPU if that is not here.

        Raises:
            MeristemError: if it is something else.
        """
        estimator, tensors, config = load_estimator(cls, source, device)
        estimator._restore_targets(config)
        state = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        outputs = len(list(state.values())[-1])
        estimator.network_ = mlp([*config["sizes"], outputs]).double().to(estimator.device)
        estimator.network_.load_state_dict(state)
        estimator.history_ = config["history"]
        estimator.n_iter_ = len(estimator.history_)
        estimator.mean_, estimator.scale_ = tensors["mean"].numpy(), tensors["scale"].numpy()
        estimator.visible_ = config["visible"]
        estimator.layers_ = restored_layers(
            config["layers"], tensors, estimator.beta, estimator.visible_, estimator.device
        )
        estimator.widths_ = [layer.width for layer in estimator.layers_]
        return estimator

    def export(self, out: str | Path, overwrite: bool = False) -> Path:
        """Write the network as ONNX (`.onnx`) or by torch.export (`.pt2`): see `exporting.export`."""
        return export(self, out, overwrite)

    def _answering(self) -> nn.Module:
        """Inputs to answers as one module."""
        check_is_fitted(self, "network_")
        mean, scale = (torch.as_tensor(array, dtype=torch.float64) for array in (self.mean_, self.scale_))
        return Answering(copy.deepcopy(self.network_).cpu(), mean, scale, self._to_answers())

    def _to_answers(self) -> nn.Module:
        raise NotImplementedError

    def _targets(self) -> dict[str, Any]:
        raise NotImplementedError

    def _restore_targets(self, config: dict[str, Any]) -> None:
        raise NotImplementedError


def _parameters(sizes: list[int]) -> int:
    return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))


@dataclass(eq=False, repr=False)
class EnergyNetClassifier(ClassLabels, ClassifierMixin, _EnergyNet):
    """A classifier whose widths and depth are learned from the data's energy, without labels.

    Stage one learns layers (infinite RBMs, one on the other); stage two puts a linear output on top and trains the
    network by gradient descent from the weights found.

    Args:
        beta: the price of width in stage one (above 1). depth_penalty: the price of a further layer, in nats per row.
        max_layers: at most so many. quantile: a layer is wide enough to hold z for so much of the data.
        visible: "binary" for inputs in [0, 1], "gaussian" for real ones (standardised); "auto" looks.
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
class EnergyNetRegressor(ScaledTarget, RegressorMixin, _EnergyNet):
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
