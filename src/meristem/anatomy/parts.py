"""Axes that follow from others: `heads` is `kv_heads group`, and `over8_hidden` an eighth of `hidden`."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PART = re.compile(r"over(\d+)_(\w+)")


class AxisSizes(dict[str, int]):
    """Axis sizes that also answer for parts of axes."""

    def __missing__(self, axis: str) -> int:
        match = _PART.fullmatch(axis)
        if match is None:
            raise KeyError(axis)
        return self[match.group(2)] // int(match.group(1))


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
    return match.group(2) if match else axis
