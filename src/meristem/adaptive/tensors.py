"""Between scikit-learn's arrays and torch's tensors: seeds, devices, batches; and files without pickles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.utils import check_random_state
from torch import Tensor

from meristem.checkpoints.write import atomic_directory
from meristem.errors import MeristemError


def generator_of(random_state: Any, device: str = "cpu") -> torch.Generator:
    """A torch generator seeded from what scikit-learn calls a random state (None, a number or a RandomState)."""
    seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    return torch.Generator(device).manual_seed(seed)


def seed_of(seed: int, number: int, which: int) -> int:
    """A seed for one part of one round, a pure function of the three."""
    digest = hashlib.sha256(f"{seed} {number} {which}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The row numbers 0 .. count - 1 in random order, in pieces."""
    yield from torch.randperm(count, generator=generator, device=generator.device).split(batch_size)


def save_estimator(out: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], overwrite: bool) -> None:
    """Write OUT/model.safetensors and OUT/config.json; OUT appears by atomic rename.

    Raises:
        MeristemError: if OUT exists and `overwrite` is not set, or cannot be written.
    """
    with atomic_directory(Path(out), overwrite) as folder:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_estimator(source: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_estimator` wrote.

    Raises:
        MeristemError: if nothing of the kind is there.
    """
    folder = Path(source)
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise MeristemError(
            f"{source} holds no saved estimator (model.safetensors and config.json): {error}"
        ) from error
    if config.get("estimator") != kind:
        raise MeristemError(f"{source} holds a {config.get('estimator', 'model of another kind')}, asked for a {kind}")
    return tensors, config
