"""Tensors in the files that do not belong to the architecture. The result would lack them, so they are
reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import PurePath

from torch import nn

from meristem.checkpoints.distributed_tensors import INDEX, DistributedTensors
from meristem.checkpoints.source import Source
from meristem.checkpoints.stored import StoredTensors
from meristem.errors import MeristemError

KERNELS = re.compile(r"(.*\.)parametrizations\.(\w+)\.original")  # of a weight in several of them (`kernels.majority`)
MASKS = (".attn.bias", ".attention.bias", ".causal_mask")  # of GPT-2 and its relatives, in old checkpoints


def check_unplaced(
    source: Source, model: nn.Module, unplaced: Mapping[str, tuple[int, ...]], drop: Sequence[str]
) -> None:
    """Raises MeristemError if any of `unplaced` ({name in the files: shape}) was learned, unless `drop` has a
    pattern for it. Kernels of a weight are no tensors to leave out.
    """
    lost = [name for name in unplaced if not any(fnmatch(name, pattern) for pattern in drop)]
    lost = [name for name in lost if not _not_learned(model, name, unplaced[name])]
    if kernels := _kernels(model, unplaced):
        count = unplaced[kernels[0]][0]
        raise MeristemError(
            f"{source}: its files hold {count} kernels for each of {len(kernels)} weights ({kernels[0]}), as Majority Kernels train "
            f"them. Load them into ms.majority(model, kernels={count}) with the run's other options, save ms.deploy(...) of that, and "
            "take that directory"
        )
    if lost:
        shown = ", ".join(lost[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
        flags = " ".join(f"--drop {pattern!r}" for pattern in _patterns(lost))
        raise MeristemError(
            f"{source}: {type(model).__name__} has no place for {len(lost)} tensors of its files ({shown}), which would be "
            f"lost; pass {flags} to leave them out, or name in config.json the class that uses them"
        )


def _kernels(model: nn.Module, unplaced: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The names of tensors that hold several of one weight of the network, one after another."""
    found = {name: match for name in unplaced if (match := KERNELS.fullmatch(name))}
    weights = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} if found else {}
    return [name for name, match in found.items() if weights.get(match[1] + match[2]) == unplaced[name][1:]]


def check_drop(drop: Sequence[str], read: Iterable[tuple[Source, nn.Module]]) -> None:
    """Raises MeristemError for a pattern that leaves nothing out.

    Args:
        drop: `*` alone stands for whatever there is, and may be nothing.
        read: the sources and the networks that were opened from them.
    """
    loose: set[str] = set()
    for source, model in read if drop else ():
        if (source.path / INDEX).is_file():
            stored = {str(part) for path in DistributedTensors(source.path).paths.values() for part in path[-1:]}
        else:
            stored = set(StoredTensors(source.path).entries)
        loose |= {*stored, *os.listdir(source.path)} - model.state_dict().keys()
    for pattern in drop:
        if pattern.strip("*") and not any(fnmatch(name, pattern) for name in loose):
            raise MeristemError(
                f"--drop {pattern!r} leaves nothing out: it takes the names of tensors in the files that the network has no place "
                "for, or of a file with an optimizer's state, as an error names them"
            )


def _not_learned(model: nn.Module, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor was not learned: a buffer that the architecture computes (rotary frequencies, position
    numbers), a causal mask as in old checkpoints of GPT-2, or a tensor that its class says it never reads
    within a module that it has. Whole modules that a class leaves out, such as layers for multi-token
    prediction, were learned.
    """
    is_square = shape[:2] == (1, 1) and len(shape) == 4 and shape[2] == shape[3]
    if (is_square and name.endswith(MASKS)) or name.endswith(".masked_bias"):
        return True
    end = PurePath(*name.split(".")[-2:])
    if any(PurePath(*buffer.split(".")[-2:]) == end for buffer, _ in model.named_buffers()):
        return True
    patterns = [p for m in model.modules() for p in getattr(m, "_keys_to_ignore_on_load_unexpected", None) or ()]
    return any(re.search(pattern, name) for pattern in patterns) and _inside_a_module(model, name)


def _inside_a_module(model: nn.Module, name: str) -> bool:
    """Whether the deepest module on its path computes something, so that it is neither a list nor the network
    itself.
    """
    modules = dict(model.named_modules())
    prefix = str(getattr(model, "base_model_prefix", ""))
    parts = name.split(".")[:-1]
    for length in range(len(parts), 0, -1):
        path = ".".join(parts[:length])
        found = modules.get(path) or modules.get(f"{prefix}.{path}")
        if found is not None:
            return not isinstance(found, nn.ModuleList | nn.ModuleDict) and path != prefix
    return False


def _patterns(names: Sequence[str]) -> list[str]:
    """At most three patterns that match all of them, each as long as possible."""
    for length in range(max(name.count(".") for name in names), 0, -1):
        stems = {".".join(name.split(".")[:length]) for name in names}
        if len(stems) <= 3:
            return sorted(stem if stem in names else f"{stem}.*" for stem in stems)
    return ["*"]
