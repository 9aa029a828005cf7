"""The options of EnergyNet's estimators, stage one (layers without labels), and stage two (the network from
them).
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from meristem.adaptive.energynet.columns import Columns, groups_of, shared_out
from meristem.adaptive.energynet.fitted import FLOATS, Fitted
from meristem.adaptive.energynet.rows import sorted_rows
from meristem.adaptive.energynet.structure import StructureOptions, learn_structure
from meristem.adaptive.mlp import Training, mlp, train_supervised
from meristem.adaptive.options import AT_LEAST_0, AT_LEAST_1, FRACTION, POSITIVE, SHARE, Range, check_options
from meristem.adaptive.rbm.visible import check_categories, in_unit_interval
from meristem.adaptive.tensors import generator_of, tensor_of


@dataclass(eq=False, repr=False)
class Structured(Fitted):
    """What both EnergyNet estimators share: the options, stage one, and the network that follows from it."""

    _: KW_ONLY
    beta: float = 2.0
    depth_penalty: float = 0.1
    max_layers: int = 3
    quantile: float = 0.99
    visible: Literal["auto", "binary", "gaussian"] = "auto"
    categories: tuple[int, ...] | str = ()
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
        "depth_penalty": POSITIVE,  # the sum over depths then converges
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
        """Check all options.

        Raises:
            MeristemError: if an option is invalid.
        """
        check_options(self, self._ranges)
        check_categories(self.categories)

    def fit_structure(self, X: Any) -> Self:
        """Run only stage one: learn the layers from X (n_samples, n_features), without labels. A later `fit`
        keeps them.

        Raises:
            MeristemError: if an option is invalid, or if beta <= 1.
        """
        self.check_options()
        rows: Any = validate_data(self, X, dtype=FLOATS, ensure_min_samples=2)
        self._structure(rows)
        self._structure_given = True
        return self

    def _structure(self, X: np.ndarray) -> None:
        groups = groups_of(X, self.categories)
        plain = np.setdiff1d(np.arange(X.shape[1]), [column for group in groups for column in group])
        in_unit = not len(plain) or in_unit_interval(X[:, plain])
        self.visible_ = ("binary" if in_unit else "gaussian") if self.visible == "auto" else self.visible
        self.mean_, self.scale_ = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if self.visible_ == "gaussian":
            deviation = X[:, plain].std(0)
            self.mean_[plain], self.scale_[plain] = X[:, plain].mean(0), np.where(deviation > 0, deviation, 1.0)
        self._generator = generator_of(self.random_state, self.device)
        scaled = self._scaled(X)
        columns = Columns.of(scaled, groups)
        self._which, self.categories_ = columns.which, columns.sizes
        rows = sorted_rows(scaled[:, columns.read])
        options = self._structure_options()
        self.layers_ = learn_structure(rows, options, self._generator, self._report)
        self.widths_ = [layer.width for layer in self.layers_]

    def _structure_options(self) -> StructureOptions:
        machine = {
            "beta": self.beta,
            "penalty": "constant",
            "regroup": False,  # the position of a unit shows how much the data need it
            "initial_visible_bias": "data",
            "learning_rate": self.structure_learning_rate,
            "n_iter": self.structure_iter,
            "gibbs_steps": self.gibbs_steps,
            "batch_size": self.batch_size,
            "l1": self.l1,
            "visible": self.visible_,
            "categories": self.categories_,
            "device": self.device,
            "verbose": max(0, self.verbose - 1),  # 1: a line for each layer, 2: also a bar for each machine
        }
        return StructureOptions(machine, self.depth_penalty, self.max_layers, self.quantile, checkpoint=self.checkpoint)

    @property
    def _has_structure(self) -> bool:
        """Whether `fit_structure` was called, so that `fit` keeps the layers."""
        return getattr(self, "_structure_given", False)

    def _report(self, line: str) -> None:
        if self.verbose:
            print(line, file=sys.stderr, flush=True)

    def _fit_network(self, X: np.ndarray, y: Tensor, row_weight: np.ndarray, outputs: int) -> None:
        """Stage two, from the present layers."""
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
        """The learned widths, or for the ablation random ones with about as many parameters."""
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


def _parameters(sizes: list[int]) -> int:
    return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))
