"""Method options from the flags of a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from meristem.errors import MeristemError, nearest

METHOD_FLAGS = (
    "width",
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "num_hidden_layers",
    "num_experts",
    "experts_per_token",
    "layers",
    "encoder_layers",
    "decoder_layers",
    "blocks",
    "noise",
    "seed",
    "tied",
)


METHOD_NAMES = (
    "aki",
    "gradual_stacking",
    "grow_dont_overwrite",
    "hypercloning",
    "identity_blocks",
    "lemon",
    "ligo",
    "midas",
    "more_experts",
    "net2net",
    "prune",
    "shrink_zero_pad_perturb",
    "stacking",
    "upcycle",
    "weight_selection",
    "zero_padding",
)  # of meristem.growth.METHODS, which takes seconds to import, too long for a shell's completion
SHRINKING = ("weight_selection", "prune")  # of these, what `meristem shrink` takes


def check_methods(method: str | None) -> None:
    """Check the names of comma-separated methods.

    Raises:
        MeristemError: if one is unknown. The message gives it and the nearest known name.
    """
    for name in (method or "hypercloning").split(","):
        if name not in METHOD_NAMES:
            raise MeristemError(f"unknown method {name!r}; {nearest(name, METHOD_NAMES)}")


def complete_method(incomplete: str) -> list[str]:
    """Completions of the last of several comma-separated methods."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in METHOD_NAMES if name.startswith(last)]


def method_options(context: typer.Context) -> dict[str, Any]:
    """The options of the method, from the flags of the present command."""
    given = {name: context.params.get(name) for name in METHOD_FLAGS}
    return read_options(given, context.params.get("option") or [], context.params.get("size") or [])


def read_options(given: dict[str, Any], extra: list[str], sizes: Sequence[str] = ()) -> dict[str, Any]:
    """Method options from flags, from `--option name=value` and from `--size axis=number`. Numbers are
    converted.

    Raises:
        MeristemError: if a factor is not a whole number, or if an option is not name=value.
    """
    options = {name: value for name, value in given.items() if value is not None}
    for name in ("width", "depth"):
        if name in options:
            try:
                options[name] = int(options[name])
            except ValueError as error:
                raise MeristemError(f"--{name} must be a whole number of at least 1, got {options[name]}") from error
    targets = named_values("--size", sizes)
    depths = {axis: size for axis, size in targets.items() if axis.endswith("layers")}
    widths = {axis: size for axis, size in targets.items() if axis not in depths}
    named = {option: found for option, found in (("sizes", widths), ("depths", depths)) if found}
    return {**options, **named, **named_values("--option", extra)}


def named_values(flag: str, entries: Sequence[str]) -> dict[str, Any]:
    """The values of a repeatable flag, `name=value` each time."""
    options = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            raise MeristemError(f"{flag} takes name=value, got {entry!r}")
        options[name.replace("-", "_")] = _typed(value)
    return options


def _typed(value: str) -> Any:
    """The text as a number or a boolean if it is one, and otherwise as it is."""
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def named_methods(method: str | None, options: dict[str, Any]) -> list[Any]:
    from meristem.growth import METHODS
    from meristem.growth.methods.options import build_methods

    return build_methods((method or "hypercloning").split(","), options, METHODS)


def like_target(model: Any, method: str | None, options: dict[str, Any], target: tuple[str | None, bool]) -> Any:
    """The method that grows to the target that `--like` names."""
    from meristem.growth.like.config import OPTIONS, like

    name, take = target
    sizes = sorted(set(options) - OPTIONS)
    if method not in (None, "lemon") or sizes:
        given = f"--method {method}" if method not in (None, "lemon") else f"--{sizes[0].replace('_', '-')}"
        raise MeristemError(f"--like takes every size from its target; leave out {given}")
    return like(model, name, take_target_fields=take, **options)
