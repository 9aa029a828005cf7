"""What inference needs of an architecture: its axis sizes and depths, and a way to build it at other ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Protocol

from torch import nn

from meristem.errors import MeristemError


class Builder(Protocol):
    """An architecture that can be built at any size. `sizes` and `depths` are those of the network at hand."""

    @property
    def sizes(self) -> Mapping[str, int]: ...
    @property
    def depths(self) -> Mapping[str, int]: ...
    @property
    def model_type(self) -> str: ...
    @property
    def splits(self) -> Mapping[str, tuple[str, Fraction]]:
        """{scope of heads: (axis, factor)} where kv_heads . group . head_dim = factor . axis."""
        ...

    def build(self, sizes: Mapping[str, int], depths: Mapping[str, int]) -> nn.Module:
        """A freshly built module on the current default device. Raises ValueError if the sizes do not fit together."""
        ...

    def resized(
        self,
        sizes: Mapping[str, int],
        depths: Mapping[str, int],
        changes: Mapping[str, Any],
        orders: Mapping[str, list[int]] | None = None,
    ) -> Builder:
        """The builder of the grown network.

        Args:
            changes: further config entries (for example untying the head).
            orders: for each axis of depth, the old layer that each new one takes its place in per-layer lists from.
        """
        ...

    def probes(self) -> list[dict[str, int]]:
        """Complete size assignments that each move one axis (and whatever must move with it)."""
        ...

    def fact(self, name: str) -> Any:
        """A config entry by name, or None."""
        ...

    def field(self, axis: str) -> str:
        """The name under which `fact` knows the size of an axis."""
        ...

    def derived(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """{axis: size} that follow from these sizes, whatever is asked for them."""
        ...

    def describe_axis(self, axis: str) -> str:
        """Where the size of an axis comes from (a config field, or how it is derived)."""
        ...


def double_each(sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """For each axis, the sizes with that axis alone doubled."""
    return [{**sizes, axis: 2 * size} for axis, size in sizes.items()]


class FunctionBuilder:
    """Any `build(**sizes)` that returns an nn.Module; depth, if it grows, is one of `depths`."""

    def __init__(
        self, build: Callable[..., nn.Module], sizes: Mapping[str, int], depths: Mapping[str, int] | None = None
    ) -> None:
        self._build, self._sizes, self._depths = build, dict(sizes), dict(depths or {})

    @property
    def sizes(self) -> Mapping[str, int]:
        return self._sizes

    @property
    def depths(self) -> Mapping[str, int]:
        return self._depths

    @property
    def splits(self) -> Mapping[str, tuple[str, Fraction]]:
        return {}

    @property
    def model_type(self) -> str:
        return getattr(self._build, "__name__", "custom")

    def build(self, sizes: Mapping[str, int], depths: Mapping[str, int]) -> nn.Module:
        return self._build(**{k: sizes[k] for k in self._sizes}, **depths)

    def resized(
        self,
        sizes: Mapping[str, int],
        depths: Mapping[str, int],
        changes: Mapping[str, Any],
        orders: Mapping[str, list[int]] | None = None,
    ) -> FunctionBuilder:
        if changes:
            raise MeristemError(f"a network built by {self.model_type}() has no config to change: {dict(changes)}")
        return FunctionBuilder(self._build, {k: sizes[k] for k in self._sizes}, depths)

    def probes(self) -> list[dict[str, int]]:
        return double_each(self._sizes)

    def fact(self, name: str) -> Any:
        return {**self._sizes, **self._depths}.get(name)

    def field(self, axis: str) -> str:
        return axis

    def derived(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        return {}

    def describe_axis(self, axis: str) -> str:
        return f"argument {axis!r} of {self.model_type}()"
