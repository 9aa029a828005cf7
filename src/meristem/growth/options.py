"""Methods from names and plain options, as they come from a command line or a recipe."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from meristem.errors import MeristemError, nearest
from meristem.growth.method import Method


def build_methods(
    names: Sequence[str], options: Mapping[str, Any], methods: Mapping[str, type[Method]]
) -> list[Method]:
    """One method for each name; an option goes to every method that has it.

    Raises:
        MeristemError: for an unknown method, an option that none of the methods has, or a value that is not one of the
            option's choices.
    """
    for name in names:
        if name not in methods:
            raise MeristemError(f"unknown method {name!r}; {nearest(name, methods)}")
    known = {name: typing.get_type_hints(methods[name]) for name in names}
    fields = {name: [f.name for f in dataclasses.fields(methods[name])] for name in names}
    for option, value in options.items():
        owners = [name for name in names if option in fields[name]]
        if not owners:
            every = {field for name in names for field in fields[name]}
            raise MeristemError(f"{' and '.join(names)} has no option {option!r}; {nearest(option, every)}")
        for name in owners:
            _check_choice(name, option, value, known[name][option])
    return [methods[name](**{o: v for o, v in options.items() if o in fields[name]}) for name in names]


def _check_choice(method: str, option: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
        raise MeristemError(
            f"{method}: {option} is one of {', '.join(map(repr, typing.get_args(hint)))}, got {value!r}"
        )
