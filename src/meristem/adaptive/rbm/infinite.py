"""OrderedRBM and InfiniteRBM: machines whose units exist in order, up to a fixed number or without a
limit.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from meristem.adaptive.rbm.estimators import RBM
from meristem.adaptive.rbm.order import Infinite, Ordered
from meristem.adaptive.rbm.training import Learner, Options

PUBLISHED: dict[str, Any] = {
    "learning_rate": 0.03,
    "batch_size": 64,
    "n_iter": 10,
    "gibbs_steps": 10,
    "initial_visible_bias": "data",
    "penalty": "bias",
    "regroup": False,
}
"""Options of `InfiniteRBM` that follow arXiv 1502.02476 (which also starts visible biases at zero)."""


@dataclass(eq=False, repr=False)
class OrderedRBM(RBM):
    """The ordered RBM, whose units exist in order up to a random number z (arXiv:1502.02476, section 3).

    Args:
        beta: the price of a unit.
        penalty: "bias" (as published) or "constant" (RP-iRBM). The other options are those of `RBM`.
    """

    _: KW_ONLY
    beta: float = 1.01
    penalty: Literal["bias", "constant"] = "bias"

    def _order(self) -> Ordered:
        return Ordered(self.beta, self.penalty)

    def posterior(self, X: Any) -> np.ndarray:
        """p(z | v) for z = 1 .. n_components_ (n_samples, n_components_). In the infinite machine, the last
        entry is for all larger z too.
        """
        machine, v = self._at(X)
        return machine.posterior(v).cpu().numpy()

    def effective_components(self, X: Any, quantile: float = 0.99) -> int:
        """The width that the data use: the smallest n for which the mean of P(Z <= n | v) over X is at least
        `quantile`.
        """
        reached = np.cumsum(self.posterior(X).mean(0))
        return min(int(np.searchsorted(reached, quantile)) + 1, self.n_components_)


@dataclass(eq=False, repr=False)
class InfiniteRBM(OrderedRBM):
    """The infinite RBM, which adds and removes units while it learns (arXiv:1502.02476, section 4).

    The defaults are chosen for features. `PUBLISHED` holds those of the paper.

    Args:
        n_components: the number of units at the start.
        max_components: the number of units at which growth stops.
        regroup: put all but a tenth of the units into a random order before each update (RP-iRBM, Peng, Gao &
            Li 2018, arXiv:1709.03239).
        beta: the price of a unit, which must be above 1. The other options are those of `OrderedRBM`.
    """

    n_components: int = 1
    _: KW_ONLY
    learning_rate: float = 0.05
    batch_size: int = 16
    n_iter: int | Literal["auto"] = "auto"
    gibbs_steps: int = 5
    initial_visible_bias: Literal["data", "zeros"] = "zeros"
    penalty: Literal["bias", "constant"] = "constant"
    max_components: int = 20000
    regroup: bool = True

    _initial_scale: ClassVar[float] = 0.0

    def _order(self) -> Infinite:
        return Infinite(self.beta, self.penalty)

    def _options(self) -> Options:
        return replace(super()._options(), max_components=self.max_components)

    def _regrouped(self, learner: Learner, epoch: int) -> int:
        return int(0.9 * learner.num_hidden) if self.regroup and epoch else 0
