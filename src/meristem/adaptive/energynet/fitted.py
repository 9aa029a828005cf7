"""What every fitted EnergyNet estimator offers: outputs, a summary, saving and export."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from meristem.adaptive.energynet.structure import Layer, layer_tensors, restored_layers
from meristem.adaptive.exporting import Answering
from meristem.adaptive.files import save_estimator
from meristem.adaptive.mlp import mlp
from meristem.adaptive.rbm.visible import visible_kind
from meristem.adaptive.saved import Exported
from meristem.adaptive.tensors import in_pieces, tensor_of

FLOATS = [np.float32, np.float64]


class Fitted(Exported):
    """The methods of an estimator that read `network_` and `layers_`. `structured.Structured` sets these."""

    device: str
    network_: nn.Sequential
    layers_: list[Layer]
    widths_: list[int]
    n_iter_: int
    history_: list[dict[str, Any]]
    visible_: str
    categories_: tuple[int, ...]
    mean_: np.ndarray
    scale_: np.ndarray

    def _outputs(self, X: Any) -> Tensor:
        check_is_fitted(self, "network_")
        X = validate_data(self, X, reset=False, dtype=FLOATS)
        with torch.no_grad():
            return in_pieces(lambda rows: self.network_(rows.double()), self._scaled(X)).cpu()

    def _scaled(self, X: np.ndarray) -> Tensor:
        return tensor_of((X - self.mean_) / self.scale_, torch.float32, self.device)

    @property
    def num_parameters_(self) -> int:
        """The number of parameters of the supervised network."""
        check_is_fitted(self, "network_")
        return sum(p.numel() for p in self.network_.parameters())

    def summary(self) -> str:
        """A description of the learned structure, with a line for each layer."""
        check_is_fitted(self, "layers_")
        copies = len(self.mean_) - len(self.layers_[0].machine.visible_bias)
        said = f", {copies} of them copies of others" if copies else ""
        if self.categories_:
            said += f", {sum(self.categories_)} of them {len(self.categories_)} categorical units"
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
        """Write a directory of safetensors and JSON, without pickles. `load` reads it.

        Raises:
            MeristemError: if `out` exists and `overwrite` is not set.
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
            "categories": list(self.categories_),
            **self._targets(),
        }
        save_estimator(self, out, tensors, config, overwrite)

    def _restore(self, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
        state = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        outputs = len(list(state.values())[-1])
        self.network_ = mlp([*config["sizes"], outputs]).double().to(self.device)
        self.network_.load_state_dict(state)
        self.history_ = config["history"]
        self.n_iter_ = len(self.history_)
        self.mean_, self.scale_ = tensors["mean"].numpy(), tensors["scale"].numpy()
        self.visible_, self.categories_ = config["visible"], tuple(config.get("categories", ()))
        kind = visible_kind(self.visible_, self.categories_)
        self.layers_ = restored_layers(config["layers"], tensors, config["options"]["beta"], kind, self.device)
        self.widths_ = [layer.width for layer in self.layers_]

    def _answering(self) -> nn.Module:
        """One module from inputs to predictions."""
        check_is_fitted(self, "network_")
        mean, scale = (torch.as_tensor(array, dtype=torch.float64) for array in (self.mean_, self.scale_))
        return Answering(copy.deepcopy(self.network_).cpu(), mean, scale, self._to_answers())
