"""What inference needs from an architecture: its axis sizes and depths, and a way to build it with others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from meristem.anatomy.uninitialised import uninitialised
from meristem.errors import MeristemError


class Builder(Protocol):
    """An architecture that can be built in any size. `sizes` and `depths` are those of the present
    network.
    """

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
        """A new module on the current default device. Raises ValueError if the sizes do not fit together."""
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
            sizes: the size of each axis.
            depths: the number of layers of each axis of depth.
            changes: further entries of the config (for example to untie the head).
            orders: for each axis of depth, the old layer whose entry in per-layer lists each new layer takes.
        """
        ...

    def probes(self) -> list[dict[str, int]]:
        """Complete assignments of sizes. Each changes one axis, and whatever has to change with it."""
        ...

    def fact(self, name: str) -> Any:
        """An entry of the config by name, or None."""
        ...

    def field(self, axis: str) -> str:
        """The name under which `fact` knows the size of an axis."""
        ...

    def derived(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """{axis: size} of the axes that follow from these sizes, whatever is asked for them."""
        ...

    def describe_axis(self, axis: str) -> str:
        """Where the size of an axis comes from: a config field, or a rule."""
        ...


def double_each(sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """For each axis, the sizes with only that axis doubled."""
    return [{**sizes, axis: 2 * size} for axis, size in sizes.items()]


class FunctionBuilder:
    """Any function `build(**sizes)` that returns an nn.Module. If the depth grows, it is one of `depths`.

    Sizes that the function computes itself (`int(8 / 3 * dim)` rounded up to a multiple, `n_kv_heads * (dim
    // n_heads)`) become axes too, once `with_following` names a dimension of such a size. Their sizes are
    read from a build.
    """

    def __init__(
        self,
        build: Callable[..., nn.Module],
        sizes: Mapping[str, int],
        depths: Mapping[str, int] | None = None,
        following: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        self._build, self._arguments, self._depths = build, dict(sizes), dict(depths or {})
        self._following = dict(following or {})
        self._sizes = self.measured(self._arguments)

    @property
    def arguments(self) -> Mapping[str, int]:
        """The sizes that the function takes."""
        return self._arguments

    @property
    def following(self) -> Mapping[str, tuple[str, int]]:
        """{axis whose size the function computes: (a tensor, the number of its dimension of that size)}."""
        return self._following

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

    def with_following(self, tensor: str, place: int) -> FunctionBuilder:
        """The same builder with an axis for the size of this dimension, which follows from the arguments."""
        size = self._state(self._arguments)[tensor].shape[place]
        name = next(n for i in itertools.count() if (n := f"following_{size}" + "b" * i) not in self._following)
        return FunctionBuilder(self._build, self._arguments, self._depths, {**self._following, name: (tensor, place)})

    def plain(self) -> FunctionBuilder:
        """The same builder with only the arguments of the function."""
        return FunctionBuilder(self._build, self._arguments, self._depths)

    def measured(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """These arguments, and the sizes that follow from them."""
        chosen = {name: sizes[name] for name in self._arguments}
        if not self._following:
            return chosen
        state = self._state(chosen)
        return chosen | {axis: state[tensor].shape[place] for axis, (tensor, place) in self._following.items()}

    def _measured_if_built(self, sizes: Mapping[str, int]) -> dict[str, int]:
        try:
            return self.measured(sizes)
        except Exception:  # the function refuses these sizes, as it will when it is asked to build
            return {**self._sizes, **sizes}

    def _state(self, sizes: Mapping[str, int]) -> Mapping[str, Tensor]:
        with torch.device("meta"):
            return uninitialised(lambda: self.build(sizes, self._depths)).state_dict()

    def build(self, sizes: Mapping[str, int], depths: Mapping[str, int]) -> nn.Module:
        return self._build(**{k: sizes[k] for k in self._arguments}, **depths)

    def resized(
        self,
        sizes: Mapping[str, int],
        depths: Mapping[str, int],
        changes: Mapping[str, Any],
        orders: Mapping[str, list[int]] | None = None,
    ) -> FunctionBuilder:
        if "tie_word_embeddings" in changes:
            raise MeristemError(
                f"the head of what {self.model_type}() builds is tied to its embedding: its copies add up, and no norm before it can "
                "take up the factor. Build it with a head of its own, or grow by a method that pads (zero_padding)"
            )
        if changes:
            raise MeristemError(f"a network built by {self.model_type}() has no config to change: {dict(changes)}")
        return FunctionBuilder(self._build, {k: sizes[k] for k in self._arguments}, depths, self._following)

    def probes(self) -> list[dict[str, int]]:
        return [self._measured_if_built(sizes) for sizes in double_each(self._arguments)]

    def fact(self, name: str) -> Any:
        return {**self._sizes, **self._depths}.get(name)

    def field(self, axis: str) -> str:
        return axis

    def derived(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        found = self.measured({**self._arguments, **{k: n for k, n in sizes.items() if k in self._arguments}})
        return {axis: found[axis] for axis in self._following}

    def describe_axis(self, axis: str) -> str:
        if axis in self._following:
            tensor, place = self._following[axis]
            return f"worked out by {self.model_type}(): dimension {place} of {tensor}"
        return f"argument {axis!r} of {self.model_type}()"
