"""Networks outside transformers: a function that builds them, and their weights in one safetensors file.

Naming a function (`package.module:function`) runs its module. Users choose that themselves on the command
line; checkpoints never name one.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.shared_names import names_of_parameters
from meristem.checkpoints.directory import atomic_directory
from meristem.errors import MeristemError, first_line, nearest
from meristem.growth import Growth

WEIGHTS = "model.safetensors"


def builder_named(name: str) -> Callable[..., nn.Module]:
    """The function that `package.module:function` names. Modules are looked for in the working directory
    first.

    Raises:
        MeristemError: if there is no such module or function, or if the module cannot be run.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise MeristemError(f"--build takes module:function, such as my_module:build; got {name!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise MeristemError(f"--build {name}: the module {module} cannot be imported: {first_line(error)}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    build = getattr(found, function, None)
    if not callable(build):
        known = [own for own in vars(found) if callable(getattr(found, own)) and not own.startswith("_")]
        raise MeristemError(f"--build {name}: {module} has no function {function!r}; {nearest(function, known)}")
    return build  # pyright: ignore[reportReturnType]: what it returns is checked when it is called


def load_weights(net: nn.Module, file: Path) -> nn.Module:
    """The network with the weights of a safetensors file, in their dtype, in evaluation mode.

    Raises:
        MeristemError: if the file cannot be read, or if its tensors are not those of the network. The message
            names the first that differs.
    """
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(file)
    except Exception as error:
        raise MeristemError(f"--weights {file} cannot be read as safetensors: {first_line(error)}") from error
    for names in names_of_parameters(net):  # a file holds shared tensors once
        there = next((name for name in names if name in state), None)
        if there is not None:
            state |= dict.fromkeys(names, state[there])
    own = net.state_dict()
    lacks, more = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if lacks or more or shapes:
        said = f"has no {lacks[0]}" if lacks else f"has {more[0]}, which the network lacks" if more else ""
        if shapes:
            name = shapes[0]
            said = f"has {name} of {tuple(state[name].shape)}, and the network one of {tuple(own[name].shape)}"
        raise MeristemError(f"--weights {file} {said}; were --sizes and --depths the same when it was trained?")
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    net = net.to(dtypes.pop()) if len(dtypes) == 1 else net
    net.load_state_dict(state)
    return net.eval()


def write_own(growth: Growth, out: Path, origin: Mapping[str, Any], weights: Path, overwrite: bool) -> None:
    """Write a directory with `model.safetensors` and `meristem.json`: how the network was grown, how it is
    built now, and the proof.

    Args:
        growth: the growth.
        out: the directory to write.
        origin: how the source is built: "build", "sizes" and "depths".
        weights: the file from which the source was read.
        overwrite: replace `out`, if Meristem or `save_pretrained` wrote everything in it.
    """
    from safetensors.torch import save_model

    from meristem import __version__

    builder = growth.anatomy.builder
    record = {
        "meristem_version": __version__,
        "methods": list(growth.methods),
        "source": {**origin, "weights": str(weights), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()},
        "build": origin["build"],
        "sizes": dict(builder.arguments if isinstance(builder, FunctionBuilder) else builder.sizes),
        "depths": dict(builder.depths),
        "certificate": growth.certificate.as_dict() if growth.certificate else None,
    }
    with atomic_directory(out, overwrite, [weights]) as directory:
        save_model(growth.model, str(directory / WEIGHTS))
        (directory / "meristem.json").write_text(json.dumps(record, indent=2) + "\n")
