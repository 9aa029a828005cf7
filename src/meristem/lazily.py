"""Packages that load their names when they are used, so that reading a recipe or finding a directory does not
load torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def load_when_used(package: str, homes: Mapping[str, str]) -> None:
    """Give a package names that are imported from their modules when they are used.

    The `__getattr__` of a module is not enough: if a function has the name of its module (`recipes.run`),
    importing the module would hide the function.

    Args:
        package: its `__name__`, while it is being imported.
        homes: for each name, the module that defines it.
    """

    class Package(ModuleType):
        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *homes})

    for name, home in homes.items():
        setattr(Package, name, _loaded(name, home))
    sys.modules[package].__class__ = Package


def _loaded(name: str, home: str) -> property:
    replaced: dict[str, Any] = {}

    def get(package: ModuleType) -> Any:
        return replaced[name] if name in replaced else getattr(importlib.import_module(home), name)

    def put(package: ModuleType, value: Any) -> None:
        if getattr(value, "__name__", None) != f"{package.__name__}.{name}" or not isinstance(value, ModuleType):
            replaced[name] = value  # a test's stand-in; the module of this name, which its import puts here, is not

    return property(get, put)
