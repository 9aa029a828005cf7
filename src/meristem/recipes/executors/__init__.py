"""Executors run the nodes of a recipe: as processes on this machine, on a Ray cluster, or on a Slurm
cluster.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from inspect import signature
from typing import Any

from meristem.errors import MeristemError, nearest
from meristem.recipes.executors.executor import Executor as Executor

EXECUTORS = {
    "local": "meristem.recipes.executors.local:Local",
    "ray": "meristem.recipes.executors.ray:Ray",
    "slurm": "meristem.recipes.executors.slurm:Slurm",
}


def build_executor(name: str, options: Mapping[str, Any]) -> Executor:
    """An executor by its name, with its options. Its library is imported when the executor is entered as a
    context.

    Raises:
        MeristemError: for an unknown name or option.
    """
    if name not in EXECUTORS:
        raise MeristemError(f"executor {name!r} is unknown; {nearest(name, EXECUTORS)}")
    module, _, attribute = EXECUTORS[name].partition(":")
    chosen: Any = getattr(importlib.import_module(module), attribute)
    known = signature(chosen).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for option in () if takes_any else options:
        if option not in known:
            raise MeristemError(f"executor {name} has no option {option!r}; {nearest(option, known)}")
    return chosen(**options)
