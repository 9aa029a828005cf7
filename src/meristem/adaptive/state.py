"""The state of a training that can be interrupted: one safetensors file that is replaced atomically and
belongs to its data and options.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from meristem.errors import MeristemError


def keep_state(path: Path, fingerprint: str, tensors: Mapping[str, Tensor], note: Any) -> None:
    """Write tensors and a note (JSON) by an atomic rename. `fingerprint` identifies the data and options that
    they belong to.

    Raises:
        MeristemError: if it cannot be written, for example because a directory above it is a file.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), partial, {"fingerprint": fingerprint, "note": json.dumps(note)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise MeristemError(f"cannot keep the state of the training at {path}: {error}") from error


def read_state(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], Any] | None:
    """The result of `keep_state`, or None if there is no file.

    Raises:
        MeristemError: if the file is something else, or belongs to other data or options.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise MeristemError(f"{path} holds no training state: {error}") from error
    if said.get("fingerprint") != fingerprint:
        raise MeristemError(f"{path} belongs to other data or options; choose another checkpoint or remove it")
    return tensors, json.loads(said["note"])
