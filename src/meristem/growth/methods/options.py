"""Methods from names and plain options, as a command line or a recipe gives them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from meristem.errors import MeristemError, nearest
from meristem.growth.methods.method import Method

FACTORS = ("width", "depth")
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)  # as far as they can be checked without a network


def build_methods(
    names: Sequence[str], options: Mapping[str, Any], methods: Mapping[str, type[Method]]
) -> list[Method]:
    """One method for each name. An option goes to every method that has it.

    Raises:
        MeristemError: for an unknown method, an option that none of the methods has, or a value that an
            option cannot have.
    """
    for name in names:
        if name not in methods:
            raise MeristemError(f"unknown method {name!r}; {nearest(name, methods)}")
    fields = {name: [f.name for f in dataclasses.fields(methods[name])] for name in names}
    for option in options:
        owners = [name for name in names if option in fields[name]]
        if not owners:
            every = {field for name in names for field in fields[name]}
            elsewhere = [
                name for name, method in methods.items() if option in {f.name for f in dataclasses.fields(method)}
            ]
            hint = (
                f"{', '.join(elsewhere)} have it: --method {names[0]},{_shown(elsewhere)}"
                if elsewhere
                else nearest(option, every)
            )
            raise MeristemError(f"{' and '.join(names)} has no option {option!r}; {hint}")
    for option in FACTORS + SIZES:
        value = options.get(option)
        if value is None or isinstance(value, Mapping):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            least = "whole number of at least 1" if option in FACTORS else "positive whole number"
            owner = next(name for name in names if option in fields[name])
            raise MeristemError(f"{owner}: {option} must be a {least}, got {value!r}")
    return [methods[name](**_own(options, fields[name], typing.get_type_hints(methods[name]))) for name in names]


def _shown(methods: Sequence[str]) -> str:
    """The method to name as an example: one that keeps the function and needs no data."""
    return next((name for name in ("identity_blocks", "hypercloning") if name in methods), methods[0])


def _own(options: Mapping[str, Any], fields: Sequence[str], hints: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one method. "true" and "false" from a command line become booleans where these are
    expected.
    """
    words = {"true": True, "yes": True, "false": False, "no": False}
    return {
        option: words.get(str(value).lower(), value) if hints[option] is bool else value
        for option, value in options.items()
        if option in fields
    }
