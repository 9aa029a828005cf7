"""Checks of options: their kinds come from the annotations of the class, their ranges from one table in each
class.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from meristem.errors import MeristemError, first_line


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without the ends that are open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        said = []
        if self.low > -math.inf:
            said.append(f"{'above' if self.low_open else 'at least'} {self.low:g}")
        if self.high < math.inf:
            said.append(f"{'below' if self.high_open else 'at most'} {self.high:g}")
        return " and ".join(said)


POSITIVE = Range(0, low_open=True)
AT_LEAST_0 = Range(0)
AT_LEAST_1 = Range(1)
FRACTION = Range(0, 1, high_open=True)
SHARE = Range(0, 1, low_open=True)


def check_options(subject: Any, ranges: Mapping[str, Range]) -> None:
    """Check every option of a dataclass that its annotation describes: a choice, true or false, a number in
    its range, a device.

    Raises:
        MeristemError: with the option, the value that was given, and the values that are valid.
    """
    hints = typing.get_type_hints(type(subject))
    for field in dataclasses.fields(subject):
        if not field.init:
            continue
        check_option(field.name, getattr(subject, field.name), hints[field.name], ranges.get(field.name, Range()))


def check_option(name: str, value: Any, hint: Any, allowed: Range) -> None:
    """Check one value.

    Raises:
        MeristemError: if the value is not valid.
    """
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if any(typing.get_origin(kind) is Literal and value in typing.get_args(kind) for kind in kinds):
            return
        hint = kinds[0]
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise MeristemError(f"{name}={value!r} is not known; known: {', '.join(map(str, typing.get_args(hint)))}")
    elif hint is bool:
        if not isinstance(value, bool | np.bool_):
            raise MeristemError(f"{name} is true or false, got {value!r}")
    elif hint in (int, float):
        _check_number(name, value, hint, allowed)
    elif name == "device":
        _check_device(value)


def _check_number(name: str, value: Any, kind: type, allowed: Range) -> None:
    wanted = numbers.Integral if kind is int else numbers.Real
    if not isinstance(value, wanted) or isinstance(value, bool | np.bool_):
        raise MeristemError(f"{name} is a {'whole ' if kind is int else ''}number, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or number not in allowed:
        raise MeristemError(f"{name} must be {str(allowed) or 'finite'}, got {value!r}")


def _check_device(device: Any) -> None:
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise MeristemError(f"device={device!r} cannot be used here: {first_line(error)}") from error
    if found.type == "meta":
        raise MeristemError("device='meta' keeps no numbers, so nothing can be learned there; choose 'cpu' or 'cuda'")
