"""RBM, OrderedRBM and InfiniteRBM with the interface of a scikit-learn transformer, next to its own
`BernoulliRBM`.
"""

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

    It computes in the precision of the data. Give float32 for speed.

    Args:
        n_components: the number of hidden units.
        learning_rate: the learning rate of AdaGrad, for each parameter.
        batch_size: the rows in an update, and the number of persistent chains.
        n_iter: the passes through the data. "auto" makes as many as 4,000 updates need, from 10 to 40.
        gibbs_steps: k of CD-k.
        persistent: True for PCD, whose chains continue from the last update. False for CD, whose chains start
            at the data.
        l1, l2: the penalties on the weights. L1 is applied by a proximal step.
        visible: "binary" for values in [0, 1], which may be probabilities, or "gaussian" for real numbers.
        initial_visible_bias: the first biases of binary units. "data" takes the log-odds of the data, so that
            the hidden units have to explain only dependences (Hinton's guide, 2010). "zeros" is as published
            for the infinite RBM.
        sigma: the standard deviation of Gaussian visible units.
        categories: the sizes of categorical units, which are the last features in one-hot groups. (3, 4) are
            the last seven features, with exactly one 1 among the first three and one among the last four.
            `visible` describes the features before them.
        device: the device that computes, by its name in torch.
        random_state, verbose: as everywhere in scikit-learn.
        checkpoint: a file in which a fit keeps its state after each pass. A fit that finds it continues from
            there.

    Attributes:
        components_: W (n_components_, n_features_in_).
        intercept_hidden_: b (n_components_,).
        intercept_visible_: c (n_features_in_,).
        n_components_: the number of hidden units after the fit.
        history_: a record of each pass.
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
        """Check all options.

        Raises:
            MeristemError: if an option is invalid.
        """
        check_options(self, self._ranges)
        check_categories(self.categories)

    def _options(self) -> Options:
        return Options(self.learning_rate, self.gibbs_steps, self.persistent, self.l1, self.l2)

    def _regrouped(self, learner: Learner, epoch: int) -> int:
        """The number of units that are put into a random order before each update."""
        return 0

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit to X (n_samples, n_features). `y` is ignored.

        Raises:
            MeristemError: if binary units get values outside [0, 1], if beta <= 1 in the infinite machine, or
                if an option is invalid.
        """
        self.check_options()
        self._fit(self._read(X, reset=True))
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Make one pass through X (n_samples, n_features) that continues from what is learned. The first call
        begins as `fit` does. `y` is ignored.

        Chains and AdaGrad's sums continue from call to call. After `fit` or `load` they begin again, and the
        weights are kept.

        Raises:
            MeristemError: as in `fit`.
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
        """The state without a training in progress, so that pickles hold only what is learned."""
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
            disable=None if self.verbose else True,  # None: no bar without a terminal
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
        if from_data:  # the softmax of a categorical unit's biases is the frequency of each of its values
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
    """E[z] over the rows. The open end counts as its first unit."""
    numbers = torch.arange(1, posterior.shape[-1] + 1, device=posterior.device, dtype=posterior.dtype)
    return (posterior @ numbers).mean()
