"""RBM, OrderedRBM and InfiniteRBM behind scikit-learn's transformer contract, beside its own `BernoulliRBM`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from tqdm.auto import tqdm

from meristem.adaptive.files import load_estimator, save_estimator
from meristem.adaptive.options import AT_LEAST_0, AT_LEAST_1, POSITIVE, Range, check_options
from meristem.adaptive.rbm.draws import Draws
from meristem.adaptive.rbm.machine import Machine
from meristem.adaptive.rbm.order import Infinite, Order, Ordered, Unordered
from meristem.adaptive.rbm.partition import ENUMERABLE, Annealed, anneal, fewest_units, log_partition
from meristem.adaptive.rbm.progress import Progress
from meristem.adaptive.rbm.training import Learner, Options
from meristem.adaptive.rbm.visible import (
    Visible,
    check_categories,
    check_groups,
    in_unit_interval,
    visible_kind,
)
from meristem.adaptive.tensors import batches, generator_of, tensor_of
from meristem.errors import MeristemError

PARAMETERS = ("weights", "hidden_bias", "visible_bias")


@dataclass(eq=False, repr=False)
class RBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A restricted Boltzmann machine, trained by (persistent) contrastive divergence with AdaGrad.

    It computes in the precision of the data: give float32 for speed.

    Args:
        n_components: hidden units.
        learning_rate: of AdaGrad, for each parameter.
        batch_size: rows in an update, and persistent chains.
        n_iter: passes through the data.
        gibbs_steps: k of CD-k.
        persistent: PCD (chains go on) or CD (chains start at the data).
        l1, l2: penalties on the weights; L1 by a proximal step.
        visible: "binary" for values in [0, 1] (probabilities are data too), "gaussian" for real numbers.
        initial_visible_bias: where binary units' biases start: at the data's log-odds, so that the hidden units have only
            dependences to explain (Hinton's guide, 2010), or at zero (as published for the infinite RBM).
        sigma: the standard deviation of Gaussian visible units.
        categories: the sizes of categorical units, the last features in one-hot groups: (3, 4) are the last seven, of which exactly one of
            three and one of four is on. The features before them are as `visible` says.
        device: where to compute, as torch names it. random_state, verbose: as everywhere in scikit-learn.
        checkpoint: a file in which a fit keeps its state after each pass; a fit that finds it goes on from there.

    Attributes:
        components_: W (n_components_, n_features_in_). intercept_hidden_: b. intercept_visible_: c.
        n_components_: hidden units after the fit. history_: a record for each pass.
    """

    n_components: int = 256
    _: KW_ONLY
    learning_rate: float = 0.03
    batch_size: int = 64
    n_iter: int = 10
    gibbs_steps: int = 10
    persistent: bool = True
    l1: float = 0.0
    l2: float = 0.0
    visible: Literal["binary", "gaussian"] = "binary"
    initial_visible_bias: Literal["data", "zeros"] = "data"
    sigma: float = 1.0
    categories: tuple[int, ...] = ()
    device: str = "cpu"
    random_state: Any = None
    verbose: int = 0
    checkpoint: str | None = None

    _initial_scale: ClassVar[float] = 0.01
    _ranges: ClassVar[dict[str, Range]] = {
        "n_components": AT_LEAST_1,
        "learning_rate": POSITIVE,
        "batch_size": AT_LEAST_1,
        "n_iter": AT_LEAST_0,
        "gibbs_steps": AT_LEAST_1,
        "l1": AT_LEAST_0,
        "l2": AT_LEAST_0,
        "sigma": POSITIVE,
        "max_components": AT_LEAST_1,
        "generative_weight": AT_LEAST_0,
    }

    def check_options(self) -> None:
        """Raises MeristemError for options that make no sense."""
        check_options(self, self._ranges)
        check_categories(self.categories)

    def _order(self) -> Order:
        return Unordered()

    def _visible_kind(self) -> Visible:
        return visible_kind(self.visible, self.categories, self.sigma)

    def _options(self) -> Options:
        return Options(self.learning_rate, self.gibbs_steps, self.persistent, self.l1, self.l2)

    def _regrouped(self, learner: Learner, epoch: int) -> int:
        """How many units are put into a random order before each update."""
        return 0

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

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from X (n_samples, n_features); y is ignored.

        Raises:
            MeristemError: for binary units and values outside [0, 1], for beta <= 1 in the infinite machine, for
                options that make no sense.
        """
        self.check_options()
        self._fit(self._read(X, reset=True))
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """One pass through X (n_samples, n_features) that goes on from what is learned; y is ignored. The first call begins, as `fit` does.

        Chains and AdaGrad's sums go on from call to call; after `fit` or `load` they begin anew, the weights stay.

        Raises:
            MeristemError: as `fit`.
        """
        self.check_options()
        self._go_on(self._read(X, reset=not hasattr(self, "components_")))
        return self

    def _go_on(self, data: Tensor) -> None:
        learner = getattr(self, "_running", None)
        if learner is None:
            learner = self._learner(data)
            if hasattr(self, "components_"):
                learner.begin_with(self.machine_.to(data.dtype))
            else:
                self.history_ = []
        for index in batches(len(data), self.batch_size, learner.generator):
            self._update(learner, data, index)
        history = [*self.history_, self._record(learner.machine, data)]
        self._keep(learner.machine)
        self.history_, self._running = history, learner

    def __getstate__(self) -> dict[str, Any]:
        """Without the training that goes on: pickles hold what is learned."""
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_running"}

    def _fit(self, data: Tensor) -> None:
        learner = self._learner(data)
        progress = Progress(self.checkpoint, learner, self._fingerprint(data) if self.checkpoint else "")
        rows = range(progress.epoch, self.n_iter)
        bar = tqdm(
            rows,
            initial=progress.epoch,
            total=self.n_iter,
            disable=None if self.verbose else True,  # None: of no use where there is no terminal
            desc=type(self).__name__,
            leave=False,
        )
        for epoch in bar:
            for index in batches(len(data), self.batch_size, learner.generator):
                if first := self._regrouped(learner, epoch):
                    learner.regroup(min(first, learner.num_hidden))
                self._update(learner, data, index)
            record = self._record(learner.machine, data)
            bar.set_postfix(record)
            progress.save(record)
        self.history_ = progress.history
        self._keep(learner.machine)

    def _learner(self, data: Tensor) -> Learner:
        generator = generator_of(self.random_state, self.device)
        shape = (self.n_components, data.shape[1])
        noise = torch.randn(shape, generator=generator, device=data.device, dtype=data.dtype)
        return Learner(
            self._initial_scale * noise,
            self._initial_visible_bias(data),
            self._order(),
            self._visible_kind(),
            self._options(),
            generator,
            particles=self.batch_size,
        )

    def _initial_visible_bias(self, data: Tensor) -> Tensor:
        mean, least = data.mean(0), 0.5 / (len(data) + 1)
        from_data = self.initial_visible_bias == "data"
        seen: Any = self
        inputs = int(seen.n_features_in_)
        plain = inputs - sum(self.categories)
        bias = torch.logit(mean, eps=least) if from_data else torch.zeros_like(mean)
        if self.visible == "gaussian":
            bias[:plain] = mean[:plain]
        if from_data:  # softmax of a categorical unit's biases is how often each of its values occurs
            groups = slice(plain, inputs)
            bias[groups] = mean[groups].clamp(min=least).log()
        return bias

    def _update(self, learner: Learner, data: Tensor, index: Tensor) -> None:
        learner.update(data[index])

    def _fingerprint(self, data: Tensor) -> str:
        left_out = {"verbose", "checkpoint", "device", "n_iter"}
        options = {name: repr(value) for name, value in sorted(self.get_params().items()) if name not in left_out}
        return sha256(repr(options).encode() + data.cpu().numpy().tobytes()).hexdigest()

    def _record(self, machine: Machine, data: Tensor) -> dict[str, float]:
        sample = data[:1000]
        record = {"n_components": machine.num_hidden, "free_energy": float(machine.free_energy(sample).mean())}
        if isinstance(machine.order, Ordered):
            record["mean_z"] = float(_mean_z(machine.posterior(sample)))
        return record

    def _keep(self, machine: Machine) -> None:
        self._keep_parameters([getattr(machine, name).cpu().numpy().copy() for name in PARAMETERS])

    def _keep_parameters(self, arrays: Sequence[np.ndarray]) -> None:
        self.components_, self.intercept_hidden_, self.intercept_visible_ = arrays
        self.n_components_ = self._n_features_out = len(self.intercept_hidden_)
        self._log_partition: float | None = None
        self._running = None

    @classmethod
    def from_parameters(cls, weights: Any, hidden_bias: Any, visible_bias: Any, **options: Any) -> Self:
        """A machine with given parameters: weights (hidden, visible units), biases; `options` as for the class."""
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
        """The machine and the data, in the data's precision."""
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
        """ln Z: exact by enumeration where at most 20 units are on one side ("auto" looks), by AIS elsewhere.

        Args:
            annealing: `chains` and `count` of `anneal`; the estimate's spread is in `annealed(...)`.

        Raises:
            MeristemError: if an exact sum is asked for and too large.
        """
        machine = self.machine_
        if method == "exact" or (method == "auto" and fewest_units(machine) <= ENUMERABLE):
            return log_partition(machine)
        return self.annealed(**annealing).log_partition

    def annealed(self, chains: int = 100, count: int = 1450) -> Annealed:
        """ln Z by annealed importance sampling, with its spread (see `partition.anneal`)."""
        return anneal(self.machine_, generator_of(self.random_state, self.device), chains, count)

    def score_samples(self, X: Any) -> np.ndarray:
        """ln p(v) = -F(v) - ln Z (n_samples,); ln Z is computed once, see `log_partition`.

        `BernoulliRBM.score_samples` is a pseudo-likelihood of one random bit; this is the likelihood.
        """
        energy = self.free_energy(X)
        if self._log_partition is None:
            self._log_partition = self.log_partition()
        return -energy - self._log_partition

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, gibbs_steps: int = 1000) -> np.ndarray:
        """Draws from the model after so many Gibbs steps from noise (n_samples, n_features_in_)."""
        machine, generator = self.machine_, generator_of(self.random_state, self.device)
        field = torch.zeros(n_samples, len(machine.visible_bias), device=self.device, dtype=machine.weights.dtype)
        start = machine.visible.sample(field, machine.visible_bias, Draws(generator))
        return machine.gibbs(start, gibbs_steps, generator).cpu().numpy()

    def save(self, out: str | Path, overwrite: bool = False) -> None:
        """Write a directory of safetensors and JSON (no pickle); `load` reads it.

        Raises:
            MeristemError: if `out` exists.
        """
        machine = self.machine_
        tensors = {name: getattr(machine, name) for name in PARAMETERS}
        save_estimator(self, out, tensors, {"history": self.history_, **self._targets()}, overwrite)

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
        estimator._keep_parameters([tensors[name].numpy() for name in PARAMETERS])
        estimator.history_ = config["history"]
        return estimator

    def _targets(self) -> dict[str, Any]:
        """What files keep of labels, in a machine that has some."""
        return {}

    def _restore_targets(self, config: dict[str, Any]) -> None:
        """Read what `_targets` gave."""


@dataclass(eq=False, repr=False)
class OrderedRBM(RBM):
    """The ordered RBM: units exist in order up to a random number z (arXiv 1502.02476, section 3).

    Args:
        beta: the price of a unit. penalty: "bias" (as published) or "constant" (RP-iRBM). The others as in `RBM`.
    """

    _: KW_ONLY
    beta: float = 1.01
    penalty: Literal["bias", "constant"] = "bias"

    def _order(self) -> Ordered:
        return Ordered(self.beta, self.penalty)

    def posterior(self, X: Any) -> np.ndarray:
        """p(z | v), z = 1 .. n_components_ (n_samples, n_components_); the infinite machine's last entry is z and beyond."""
        machine, v = self._at(X)
        return machine.posterior(v).cpu().numpy()

    def effective_components(self, X: Any, quantile: float = 0.99) -> int:
        """The smallest n with mean over X of P(Z <= n | v) at least `quantile`: the width that the data use."""
        reached = np.cumsum(self.posterior(X).mean(0))
        return min(int(np.searchsorted(reached, quantile)) + 1, self.n_components_)


@dataclass(eq=False, repr=False)
class InfiniteRBM(OrderedRBM):
    """The infinite RBM: units are added and removed while it learns (arXiv 1502.02476, section 4).

    Args:
        n_components: units at the start. max_components: where growth stops.
        regroup: put the units into a random order before each update (RP-iRBM): all but a tenth of them.

    The others are as in `OrderedRBM`; beta must be above 1.
    """

    n_components: int = 1
    _: KW_ONLY
    max_components: int = 20000
    regroup: bool = False

    _initial_scale: ClassVar[float] = 0.0

    def _order(self) -> Infinite:
        return Infinite(self.beta, self.penalty)

    def _options(self) -> Options:
        return replace(super()._options(), max_components=self.max_components)

    def _regrouped(self, learner: Learner, epoch: int) -> int:
        return int(0.9 * learner.num_hidden) if self.regroup and epoch else 0


def _mean_z(posterior: Tensor) -> Tensor:
    """E[z] over the rows; the open end counts as its first unit."""
    numbers = torch.arange(1, posterior.shape[-1] + 1, device=posterior.device, dtype=posterior.dtype)
    return (posterior @ numbers).mean()
