"""Loading and exporting, which all fitted estimators share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from sklearn.base import BaseEstimator
from torch import Tensor, nn

from meristem.adaptive.exporting import export
from meristem.adaptive.files import load_estimator


class Saved(BaseEstimator):
    """An estimator that `files.save_estimator` writes, and that reads itself back."""

    @classmethod
    def load(cls, source: str | Path, device: str | None = None) -> Self:
        """Read an estimator that `save` wrote.

        Args:
            device: the device that computes. By default it is the device of the fit, or the CPU if that
                device is missing.

        Raises:
            MeristemError: if `source` holds no estimator of this class.
        """
        estimator, tensors, config = load_estimator(cls, source, device)
        estimator._restore_targets(config)
        estimator._restore(tensors, config)
        return estimator

    def _restore(self, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
        """Set what a fit sets, from the tensors and the config file."""
        raise NotImplementedError

    def _targets(self) -> dict[str, Any]:
        """The entries about labels in the config file, if the estimator has labels."""
        return {}

    def _restore_targets(self, config: dict[str, Any]) -> None:
        """Read the entries that `_targets` returned."""


class Exported(Saved):
    """A saved estimator with one network from inputs to predictions."""

    def export(self, out: str | Path, overwrite: bool = False) -> Path:
        """Write the network as ONNX (`.onnx`) or with torch.export (`.pt2`): see `exporting.export`."""
        return export(self, out, overwrite)

    def _to_answers(self) -> nn.Module:
        """The module from the network's outputs to predictions."""
        raise NotImplementedError
