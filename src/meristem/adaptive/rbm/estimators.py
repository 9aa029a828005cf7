"""RBM, OrderedRBM and InfiniteRBM behind scikit-learn's transformer contract, beside its own `BernoulliRBM`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from hashlib import sha256
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from meristem.adaptive.options import AT_LEAST_0, AT_LEAST_1, POSITIVE, Range, check_options
from meristem.adaptive.rbm.learned import PARAMETERS, Learned
from meristem.adaptive.rbm.machine import Machine
from meristem.adaptive.rbm.order import Ordered
from meristem.adaptive.rbm.progress import Progress
from meristem.adaptive.rbm.training import Learner, Options
from meristem.adaptive.rbm.visible import check_categories
from meristem.adaptive.tensors import batches, generator_of

UPDATES, FEWEST_PASSES, MOST_PASSES = 4000, 10, 40  # of n_iter="auto"


@dataclass(eq=False, repr=False)
class RBM(Learned):
    """A restricted Boltzmann machine, trained by (persistent) contrastive divergence with AdaGrad.

    It computes in the precision of the data: give float32 for speed.

    Args:
        n_components: hidden units.
        learning_rate: of AdaGrad, for each parameter.
        batch_size: rows in an update, and persistent chains.
        n_iter: passes through the data; "auto": as many as make 4,000 updates, from 10 to 40.
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
    n_iter: int | Literal["auto"] = 10
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

    def _options(self) -> Options:
        return Options(self.learning_rate, self.gibbs_steps, self.persistent, self.l1, self.l2)

    def _regrouped(self, learner: Learner, epoch: int) -> int:
        """How many units are put into a random order before each update."""
        return 0

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
        passes = self._passes(len(data))
        rows = range(progress.epoch, passes)
        bar = tqdm(
            rows,
            initial=progress.epoch,
            total=passes,
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

    def _passes(self, rows: int) -> int:
        if self.n_iter != "auto":
            return self.n_iter
        return min(MOST_PASSES, max(FEWEST_PASSES, UPDATES * self.batch_size // rows))

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


def _mean_z(posterior: Tensor) -> Tensor:
    """E[z] over the rows; the open end counts as its first unit."""
    numbers = torch.arange(1, posterior.shape[-1] + 1, device=posterior.device, dtype=posterior.dtype)
    return (posterior @ numbers).mean()
