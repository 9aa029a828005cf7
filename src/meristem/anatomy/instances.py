"""How to build more networks like the present one, which may differ from what its class builds from its
config.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from meristem.anatomy.uninitialised import uninitialised
from meristem.errors import AnatomyError

NAMED = 3  # how many tensors an error names


def constructor_of(model: nn.Module) -> Callable[[Any], nn.Module]:
    """A function that makes networks like this transformers model from configs: its class, with the flags of
    the constructor that the instance was built with (`BertModel(config, add_pooling_layer=False)`).

    Raises:
        AnatomyError: if no flags make a network with its tensors. The message names those that differ.
    """
    ours = _shapes(model)
    architecture = architecture_of(model)
    differences = []
    for flags in switches(architecture):
        make = functools.partial(architecture, **flags) if flags else architecture
        try:
            with torch.device("meta"):
                theirs = _shapes(uninitialised(functools.partial(make, model.config)))
        except (TypeError, ValueError):
            continue
        if ours == theirs:
            return make
        differences.append(_difference(ours, theirs))
    name = architecture.__name__
    raise AnatomyError(
        f"this {name} is not what {name}(config) builds: {differences[0] if differences else 'that cannot be built'}. Only "
        "what its class makes of its config can be grown; save the part that is, or write a class that builds the rest"
    )


def architecture_of(model: nn.Module) -> type[nn.Module]:
    """The model's own class. Sharding (FSDP2) derives another class from it."""
    return next(c for c in type(model).__mro__ if not c.__name__.startswith("FSDP"))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """{name: shape} of what the network computes with. A parametrized weight (several kernels, weight norm
    applied later) has the name and the shape that it has without its parametrization.
    """
    shapes = {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if ".parametrizations." not in name
    }
    for path, module in model.named_modules():
        if is_parametrized(module):
            for leaf in module.parametrizations:  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
                shapes[f"{path}.{leaf}" if path else leaf] = tuple(getattr(module, leaf).shape)
    return shapes


def switches(architecture: type[nn.Module]) -> Iterator[dict[str, bool]]:
    """No flags; then the switches of the constructor inverted, one or two at a time."""
    yield {}
    parameters = inspect.signature(architecture.__init__).parameters.values()
    switches = {p.name: not p.default for p in parameters if isinstance(p.default, bool)}
    for count in (1, 2):
        for names in combinations(switches, count):
            yield {name: switches[name] for name in names}


def _difference(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> str:
    lacks = [name for name in theirs if name not in ours]
    has = [name for name in ours if name not in theirs]
    other = [f"{n} is {ours[n]} and not {theirs[n]}" for n in ours if n in theirs and ours[n] != theirs[n]]
    parts = [f"it lacks {_listed(lacks)}"] if lacks else []
    parts += [f"it also has {_listed(has)}"] if has else []
    return "; ".join(parts + ([_listed(other)] if other else []))


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
