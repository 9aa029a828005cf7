"""Axes that follow from others: `heads` is `kv_heads group`, `over8_hidden` an eighth of `hidden`, and `frequencies_hidden`
the frequencies of sinusoidal positions of that width, a sine and a cosine for each; `after32_hidden` is all but its first 32
units."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PART = re.compile(r"(?:over(\d+)|frequencies|after(\d+))_(\w+)")


class AxisSizes(dict[str, int]):
    """Axis sizes that also answer for parts of axes."""

    def __missing__(self, axis: str) -> int:
        if not is_part(axis):
            raise KeyError(axis)
        return (self[whole_of(axis)] - skipped_by(axis)) // divisor_of(axis)


def with_parts(sizes: Mapping[str, int]) -> AxisSizes:
    """The sizes, `heads` for every `kv_heads`, and parts on demand."""
    heads = {
        axis.replace("kv_heads", "heads"): size * sizes[axis.replace("kv_heads", "group")]
        for axis, size in sizes.items()
        if axis.endswith("kv_heads")
    }
    return AxisSizes({**sizes, **heads})


def part_of(axis: str, divisor: int) -> str:
    """The name of a part. Its kind is that of the whole, so that it grows along."""
    return f"over{divisor}_{axis}"


def is_part(axis: str) -> bool:
    return _PART.fullmatch(axis) is not None


def whole_of(axis: str) -> str:
    match = _PART.fullmatch(axis)
    return match.group(3) if match else axis


def divisor_of(axis: str) -> int:
    """How many of it make the whole: 8 for `over8_hidden`, 2 for frequencies, 1 for `hidden`."""
    match = _PART.fullmatch(axis)
    return int(match.group(1) or (2 if is_frequencies(axis) else 1)) if match else 1


def is_frequencies(axis: str) -> bool:
    return axis.startswith("frequencies_")


def rest_of(axis: str, skipped: int) -> str:
    """The name of an axis without its first units."""
    return f"after{skipped}_{axis}"


def skipped_by(axis: str) -> int:
    """How many units of the whole stand before it: 32 for `after32_hidden`, else 0."""
    match = _PART.fullmatch(axis)
    return int(match.group(2) or 0) if match else 0
