"""What every fitted machine offers: features, energies, likelihoods, samples and saving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from meristem.adaptive.files import save_estimator
from meristem.adaptive.rbm.draws import Draws
from meristem.adaptive.rbm.machine import Machine
from meristem.adaptive.rbm.order import Order, Unordered
from meristem.adaptive.rbm.partition import ENUMERABLE, Annealed, anneal, fewest_units, log_partition
from meristem.adaptive.rbm.visible import Visible, check_groups, in_unit_interval, visible_kind
from meristem.adaptive.saved import Saved
from meristem.adaptive.tensors import generator_of, tensor_of
from meristem.errors import MeristemError

PARAMETERS = ("weights", "hidden_bias", "visible_bias")


class Learned(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Saved):
    """The methods of an estimator that read the learned parameters. `estimators.RBM` learns them."""

    visible: Literal["binary", "gaussian"]
    categories: tuple[int, ...]
    sigma: float
    device: str
    random_state: Any
    history_: list[dict[str, float]]

    def _order(self) -> Order:
        return Unordered()

    def _visible_kind(self) -> Visible:
        return visible_kind(self.visible, self.categories, self.sigma)

    def _read(self, X: Any, *, reset: bool) -> Tensor:
        rows: Any = validate_data(self, X, reset=reset, dtype=[np.float32, np.float64])
        return self._inputs(rows)

    def _inputs(self, X: np.ndarray) -> Tensor:
        if self.categories:
            check_groups(X, self.categories)
        plain = X[:, : X.shape[1] - sum(self.categories)]
        if self.visible == "gaussian" or not plain.size:
            return tensor_of(X, device=self.device)
        if not in_unit_interval(plain):
            raise MeristemError(
                f"binary visible units take values in [0, 1], found {plain.min():g} to {plain.max():g}; scale the data "
                "(sklearn.preprocessing.MinMaxScaler(clip=True)) or choose visible='gaussian'"
            )
        return tensor_of(X, device=self.device).clamp_(0, 1)

    def _keep_parameters(self, arrays: Sequence[np.ndarray]) -> None:
        self.components_, self.intercept_hidden_, self.intercept_visible_ = arrays
        self.n_components_ = self._n_features_out = len(self.intercept_hidden_)
        self._log_partition: float | None = None
        self._running = None

    @classmethod
    def from_parameters(cls, weights: Any, hidden_bias: Any, visible_bias: Any, **options: Any) -> Self:
        """A machine with given parameters. `options` are those of the class.

        Args:
            weights: W (hidden units, visible units).
            hidden_bias: b (hidden units,).
            visible_bias: c (visible units,).

        Raises:
            MeristemError: if the shapes do not match.
        """
        estimator = cls(**options)
        arrays = [np.ascontiguousarray(array) for array in (weights, hidden_bias, visible_bias)]
        if arrays[0].shape != (arrays[1].size, arrays[2].size):
            raise MeristemError(
                f"weights of {arrays[1].size} hidden and {arrays[2].size} visible units have the shape "
                f"({arrays[1].size}, {arrays[2].size}), got {arrays[0].shape}"
            )
        estimator._keep_parameters(arrays)
        estimator.__dict__["n_features_in_"] = arrays[2].size
        estimator.history_ = []
        return estimator

    @property
    def machine_(self) -> Machine:
        """The learned machine, on `device`."""
        check_is_fitted(self)
        arrays = (self.components_, self.intercept_hidden_, self.intercept_visible_)
        weights, hidden, visible = (torch.as_tensor(array, device=self.device) for array in arrays)
        return Machine(weights, hidden, visible, self._order(), self._visible_kind())

    def _at(self, X: Any) -> tuple[Machine, Tensor]:
        """The machine and the data, in the precision of the data."""
        machine, v = self.machine_, self._read(X, reset=False)
        return machine.to(v.dtype), v

    def transform(self, X: Any) -> np.ndarray:
        """p(h_i = 1 | v) (n_samples, n_components_)."""
        machine, v = self._at(X)
        return machine.hidden_mean(v).cpu().numpy()

    def free_energy(self, X: Any) -> np.ndarray:
        """F(v) = -ln p(v) - ln Z (n_samples,)."""
        machine, v = self._at(X)
        return machine.free_energy(v).cpu().numpy()

    def log_partition(self, method: Literal["auto", "exact", "ais"] = "auto", **annealing: Any) -> float:
        """ln Z. "exact" enumerates the states, which needs at most 20 units on one side. "ais" estimates by
        annealed importance sampling. "auto" chooses by the number of units.

        Args:
            annealing: `chains` and `count` of `anneal`. `annealed(...)` also returns the spread of the
                estimate.

        Raises:
            MeristemError: if an exact sum is requested and too large.
        """
        machine = self.machine_
        if method == "exact" or (method == "auto" and fewest_units(machine) <= ENUMERABLE):
            return log_partition(machine)
        return self.annealed(**annealing).log_partition

    def annealed(self, chains: int = 100, count: int = 1450) -> Annealed:
        """ln Z by annealed importance sampling, with its spread (see `partition.anneal`)."""
        return anneal(self.machine_, generator_of(self.random_state, self.device), chains, count)

    def score_samples(self, X: Any) -> np.ndarray:
        """ln p(v) = -F(v) - ln Z (n_samples,). ln Z is computed once, see `log_partition`.

        This is the likelihood. `BernoulliRBM.score_samples` is a pseudo-likelihood of one random bit.
        """
        energy = self.free_energy(X)
        if self._log_partition is None:
            self._log_partition = self.log_partition()
        return -energy - self._log_partition

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, gibbs_steps: int = 1000) -> np.ndarray:
        """Samples from the model (n_samples, n_features_in_), after `gibbs_steps` Gibbs steps from noise."""
        machine, generator = self.machine_, generator_of(self.random_state, self.device)
        field = torch.zeros(n_samples, len(machine.visible_bias), device=self.device, dtype=machine.weights.dtype)
        start = machine.visible.sample(field, machine.visible_bias, Draws(generator))
        return machine.gibbs(start, gibbs_steps, generator).cpu().numpy()

    def save(self, out: str | Path, overwrite: bool = False) -> None:
        """Write a directory of safetensors and JSON, without pickles. `load` reads it.

        Raises:
            MeristemError: if `out` exists and `overwrite` is not set.
        """
        machine = self.machine_
        tensors = {name: getattr(machine, name) for name in PARAMETERS}
        save_estimator(self, out, tensors, {"history": self.history_, **self._targets()}, overwrite)

    def _restore(self, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
        self._keep_parameters([tensors[name].numpy() for name in PARAMETERS])
        self.history_ = config["history"]
