"""Estimators on disk without pickles: OUT/model.safetensors and OUT/config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from meristem.checkpoints.directory import atomic_directory
from meristem.errors import MeristemError

NOT_KEPT = ("random_state", "checkpoint", "log_dir")  # they belong to a fit, not to its result
E = TypeVar("E")


def save_estimator(
    estimator: Any, out: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], overwrite: bool
) -> None:
    """Write a fitted estimator: its class, options and features, `config` and `tensors`. OUT appears by an
    atomic rename.

    Raises:
        MeristemError: if OUT exists and `overwrite` is not set, or if it cannot be written.
    """
    names = getattr(estimator, "feature_names_in_", None)
    said = {
        "estimator": type(estimator).__name__,
        "options": {name: value for name, value in estimator.get_params().items() if name not in NOT_KEPT},
        "features": estimator.n_features_in_,
        "feature_names": None if names is None else list(map(str, names)),
        **config,
    }
    with atomic_directory(Path(out), overwrite) as folder:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(said, indent=2, default=_plain) + "\n")


def load_estimator(
    kind: type[E], source: str | Path, device: str | None
) -> tuple[E, dict[str, Tensor], dict[str, Any]]:
    """An estimator with the options and features that `save_estimator` wrote, its tensors (on the CPU), and
    its config.

    Args:
        kind: the class of the estimator.
        source: the directory.
        device: the device that computes. By default it is the device of the fit, or the CPU if that device is
            missing.

    Raises:
        MeristemError: if `source` holds no estimator, one of another class, or one of another version.
    """
    folder = Path(source)
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise MeristemError(
            f"{source} holds no saved estimator (model.safetensors and config.json): {error}"
        ) from error
    found = config.get("estimator") if isinstance(config, dict) else None
    if found != kind.__name__:
        held = with_article(str(found)) if found else "a model of another kind"
        raise MeristemError(f"{source} holds {held}, not {with_article(kind.__name__)}")
    try:
        options, features, names = config["options"], config["features"], config["feature_names"]
        if "device" in options:
            options["device"] = device or _usable(options["device"])
        estimator = kind(**options)
    except (KeyError, TypeError) as error:
        raise MeristemError(
            f"{source} holds {with_article(kind.__name__)} of another version of Meristem: {error}"
        ) from error
    estimator.__dict__["n_features_in_"] = features
    if names is not None:
        estimator.__dict__["feature_names_in_"] = np.array(names, dtype=object)
    return estimator, tensors, config


def with_article(name: str) -> str:
    """A class name after "a" or "an"."""
    return f"{'an' if name[0] in 'AEIO' or name.startswith('RBM') else 'a'} {name}"


def _usable(device: str) -> str:
    """The device, or "cpu" if the device is missing."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return "cpu"
    return device


def _plain(value: Any) -> Any:
    """A NumPy number as a Python number, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be stored as JSON")
