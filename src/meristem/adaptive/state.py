"""The state of a training that can be killed: one safetensors file, replaced whole, tied to its data and options."""

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
    """Write tensors and a note (JSON) by atomic rename; `fingerprint` says what they belong to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file(dict(tensors), partial, {"fingerprint": fingerprint, "note": json.dumps(note)})
    os.replace(partial, path)


def read_state(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], Any] | None:
    """What `keep_state` wrote, or None if nothing is there.

    Raises:
        MeristemError: if the file is something else, or of other data or options.
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
