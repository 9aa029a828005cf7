"""What every fitted AdaNet estimator offers: outputs, a summary, saving and export."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.adanet.nodewise import NodewiseModule
from meristem.adaptive.files import save_estimator
from meristem.adaptive.saved import Exported
from meristem.adaptive.tensors import in_pieces, tensor_of


class Fitted(Exported):
    """The methods of an estimator that read `module_` and `history_`. `searched.Searched` sets these."""

    device: str
    module_: AdaNetModule | NodewiseModule
    history_: list[dict[str, Any]]
    price_: float
    _samples: float

    def _outputs(self, X: Any) -> Tensor:
        check_is_fitted(self, "module_")
        X = validate_data(self, X, reset=False, dtype=np.float64)
        with torch.no_grad():
            return in_pieces(self.module_, tensor_of(X, device=self.device)).cpu()

    @property
    def output_weights_(self) -> list[np.ndarray]:
        """The output weights of each part, a block or a layer of single units (width, outputs)."""
        check_is_fitted(self, "module_")
        return [weights.cpu().numpy() for weights in self.module_.output_weights]

    @property
    def num_parameters_(self) -> int:
        """The number of parameters of the learned network, without output weights that are zero."""
        check_is_fitted(self, "module_")
        return self.module_.num_used_parameters

    def summary(self) -> str:
        """A description of the learned network, with a line for each block."""
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
        """Write a directory of safetensors and JSON, without pickles. `load` reads it.

        Raises:
            MeristemError: if `out` exists and `overwrite` is not set.
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

    def _restore(self, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
        shape = config["layout"], config["features"], config["outputs"]
        if config["options"]["variant"] == "CVX":
            self.module_ = NodewiseModule.of_layout(*shape)
        else:
            self.module_ = AdaNetModule.of_layout(*shape, config.get("bins", 0))
        self.module_.load_state_dict(tensors)
        self.module_.to(self.device)
        self.history_, self._samples = config["history"], config["samples"]
        self.price_ = config.get("price", config["options"]["adanet_lambda"])

    def _answering(self) -> nn.Module:
        """One module from inputs to predictions."""
        return nn.Sequential(copy.deepcopy(self.module_).cpu(), self._to_answers())
