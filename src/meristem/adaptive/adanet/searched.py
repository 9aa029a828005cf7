"""The options of AdaNet's estimators, and the search that they define."""

from __future__ import annotations

import sys
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from meristem.adaptive.adanet.bins import Bins
from meristem.adaptive.adanet.fitted import Fitted
from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.adanet.nodewise import NodeOptions, NodewiseModule, grow_nodes
from meristem.adaptive.adanet.price import PRICES, Rows, chosen_start
from meristem.adaptive.adanet.search import Search
from meristem.adaptive.adanet.training import Options
from meristem.adaptive.options import AT_LEAST_0, AT_LEAST_1, FRACTION, POSITIVE, SHARE, Range, check_options
from meristem.adaptive.targets import counted_rows
from meristem.adaptive.tensorboard import Scalars
from meristem.adaptive.tensors import tensor_of
from meristem.errors import MeristemError


@dataclass(eq=False, repr=False)
class Searched(Fitted):
    """The options and methods that both AdaNet estimators share."""

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
    subsample: float = 1.0
    standardize: bool = True
    connection_dropout: float = 0.1
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-2
    max_steps: int = 150
    batch_size: int = 512
    patience: int = 4
    validation_fraction: float = 0.0
    n_jobs: int | None = None
    device: str = "cpu"
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
        "subsample": SHARE,
        "connection_dropout": FRACTION,
        "learning_rate": POSITIVE,
        "max_steps": AT_LEAST_0,
        "batch_size": AT_LEAST_1,
        "patience": AT_LEAST_1,
        "validation_fraction": FRACTION,
    }

    def check_options(self) -> None:
        """Check all options.

        Raises:
            MeristemError: if an option is invalid, or if the device has no float64.
        """
        check_options(self, self._ranges)
        try:
            torch.empty(0, dtype=torch.float64, device=self.device)
        except (RuntimeError, TypeError) as error:
            raise MeristemError(
                f"AdaNet fits output weights in float64, which {self.device!r} lacks; choose 'cpu'"
            ) from error

    def _search(self, X: np.ndarray, targets: Tensor, weights: np.ndarray, loss: Loss) -> None:
        x, weight = (tensor_of(array, torch.float64, self.device) for array in (X, weights))
        targets, used = targets.to(self.device), weight > 0
        x, targets, weight = x[used], targets[used], weight[used]
        shares = weight / weight.sum()
        mean, scale = self._standardisation(x, shares)
        self._samples = counted_rows(weights)
        if self.variant == "CVX":
            self._search_nodes(NodewiseModule(mean, scale), x, targets, shares, loss)
            return
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        prices = PRICES if self.adanet_lambda == "auto" else (float(self.adanet_lambda),)
        rows = Rows(x, targets, weight, self._samples)
        modules = self._starts(mean, scale, x, targets.shape[1])
        start = chosen_start(modules, rows, prices, loss, self._options(0.0), seed, self.max_depth)
        module, self.price_ = start.module, start.price
        self._report(f"adanet_lambda {self.price_:g}, {module.num_bins} bins, layers up to {start.max_depth}")
        same = ("max_rounds", "min_improvement", "n_jobs", "subsample", "checkpoint", "log_dir")
        search = Search(
            module,
            x,
            targets,
            weight,
            self._samples,
            loss,
            self._options(self.price_),
            max_depth=start.max_depth,
            seed=seed,
            rows_held_out=self._held_out(len(x), seed),
            report=self._report,
            **{name: getattr(self, name) for name in same},
        )
        search.run()
        self.module_, self.history_ = search.module, search.history

    def _standardisation(self, x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted mean of each input, and its deviation, which is 1 for a constant one. They are 0 and 1
        if inputs are read as they are.
        """
        mean, scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
        if self.standardize:
            span = x.amax(0) - x.amin(0)  # squares of numbers such as 1e-19 are below the smallest of float32
            mean = torch.where(span > 0, shares @ x, x[0])  # a constant's own, without its rounding
            parts = (x - mean) / torch.where(span > 0, span, scale)
            deviation = span * (shares @ parts.square()).sqrt()
            scale = torch.where(deviation > 0, deviation, scale)
        return mean, scale

    def _held_out(self, count: int, seed: int) -> Tensor | None:
        """The rows that only judge, of `count`. None if all rows train."""
        if not self.validation_fraction:
            return None
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
        return order[: max(1, int(self.validation_fraction * count))]

    def _starts(self, mean: Tensor, scale: Tensor, x: Tensor, outputs: int) -> list[AdaNetModule]:
        """Networks without blocks to choose from. They read numbers as they are, or encoded in bins too."""
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
