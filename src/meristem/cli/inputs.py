"""Inputs of a network from a file: what `--inputs FILE` names, for proofs on a user's own data."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from meristem.errors import MeristemError, first_line


def read_inputs(file: Path) -> dict[str, Tensor]:
    """{argument of forward: tensor} from a .safetensors, .npz or .json file ({"input_ids": [[1, 2, 3]]}); nothing is unpickled.

    Raises:
        MeristemError: if the file cannot be read, is of another kind, or holds none.
    """
    readers = {".safetensors": _safetensors, ".npz": _npz, ".json": _json}
    if file.suffix not in readers:
        raise MeristemError(f"--inputs takes a {', '.join(readers)} file of named tensors, got {file}")
    try:
        inputs = readers[file.suffix](file)
    except OSError as error:
        raise MeristemError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise MeristemError(f"{file} holds no named tensors: {first_line(error)}") from error
    if not inputs:
        raise MeristemError(
            f"{file} holds no tensors; it names the arguments of the network's forward, such as input_ids"
        )
    return inputs


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def _npz(file: Path) -> dict[str, Tensor]:
    import numpy

    with numpy.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _json(file: Path) -> dict[str, Tensor]:
    return {name: torch.tensor(values) for name, values in json.loads(file.read_text()).items()}
