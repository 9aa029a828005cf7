"""Check the values of a method's options by their types, before anything is planned."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from meristem.errors import MeristemError

SEEDS = 1 << 63  # what torch's generators take


def check_values(method: Any) -> None:
    """Check a method that is a dataclass with annotated fields.

    Raises:
        MeristemError: for text in the place of a number, numbers that are not finite, seeds that no generator
            accepts, and values that are not among the choices of an option.
    """
    hints = typing.get_type_hints(type(method))
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        wanted = _wanted(field.name, value, _alternatives(hints[field.name]))
        if wanted:
            raise MeristemError(f"{method.name}: {field.name} {wanted}, got {value!r}")


def convex(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The weights of `count` networks in a mean; equal ones if None.

    Raises:
        MeristemError: unless they are positive and sum to 1.
    """
    given = tuple(weights) if weights is not None else (1 / count,) * count
    right = len(given) == count and all(weight > 0 for weight in given) and abs(sum(given) - 1) <= 1e-6
    if not right:  # nor for NaN
        raise MeristemError(f"weights must be {count} positive numbers that sum to 1, got {list(given)}")
    return given


def _wanted(option: str, value: Any, kinds: tuple[Any, ...]) -> str | None:
    """What the value should have been. None if it is right, or checked elsewhere."""
    if value is None and type(None) in kinds:
        return None
    if option == "seed":
        right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < SEEDS
        return None if right else f"must be a whole number from 0 to {SEEDS - 1}"
    if bool in kinds:
        return None if isinstance(value, bool) else "must be True or False"
    if float in kinds:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return "must be a finite number"
        return None if option != "noise" or value >= 0 else "must not be negative"
    choices = [choice for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
    if choices and value not in choices:
        return f"is one of {', '.join(map(repr, choices))}"
    return None


def _alternatives(hint: Any) -> tuple[Any, ...]:
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if union else (hint,)
