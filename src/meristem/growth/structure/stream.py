"""Which tensors read the residual stream itself, and which read the output of a norm.

Padding an axis under a norm divides the mean square that the norm measures. If everything that reaches the
norm is multiplied by s = sqrt(new / old), the mean square is the same as before for every input, and eps,
wherever it comes from, stays as it is. So every activation on a padded axis has an amplitude: s if it is
added to something that a norm over that axis measures, and 1 otherwise. A tensor is scaled by the amplitude
of its output over that of its input: writers into the stream by s, the gain of a norm that feeds readers by 1
/ s, the gain of a norm on a branch (OLMo 2, Gemma 2) not at all, and readers without a norm before them by 1
/ s. `stream_watch` explains how a pass shows this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.norms import NormFacts


class Names:
    """Names that belong together, joined when a pass shows it (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, name: str) -> str:
        while (parent := self._parent.setdefault(name, name)) != name:
            name = parent
        return name

    def join(self, names: Iterable[str]) -> None:
        first, *others = [self.of(name) for name in names] or [""]
        for other in others:
            self._parent[self.of(other)] = self.of(first)


@dataclass(eq=False)
class Stream:
    """What one pass has shown.

    Attributes:
        taken: {tensor: names of what it is contracted or multiplied with}.
        measured: {norm: names of what it measures}, with norms without a weight.
        gains: tensors that multiply something unit by unit.
        foreign: names whose tensors have something added to them that is not the direct output of a weight
            (after a nonlinearity, from a table).
    """

    taken: dict[str, set[str]] = field(default_factory=dict)
    measured: dict[str, set[str]] = field(default_factory=dict)
    gains: set[str] = field(default_factory=set)
    foreign: list[str] = field(default_factory=list)
    names: Names = field(default_factory=Names)

    def scales(self, anatomy: Anatomy, maps: Mapping[str, AxisMap]) -> dict[str, float]:
        """{tensor: factor} that keeps every mean square under maps that pad, for the tensors that need
        one.
        """
        over = self._axes_over(anatomy)
        found = {}
        for tensor in anatomy.tensors.values():
            own = tensor.tied_to or tensor.name
            given, factor = over.get(self.names.of(own), set()), 1.0
            taken = {axis for name in self.taken.get(own, ()) for axis in over.get(self.names.of(name), set())}
            for dimension in tensor.dimensions:
                axes = {
                    axis for axis in anatomy.axes_of(dimension.layout) if axis in maps and maps[axis].norm_factor != 1
                }
                of_norm = dimension.role == "gain" and tensor.name.rpartition(".")[0] in anatomy.norms
                behind = axes if of_norm else axes & taken  # a norm's gain follows the norm of just these
                if dimension.role not in ("read", "fixed"):
                    factor /= math.prod(maps[axis].norm_factor for axis in axes & given)
                if of_norm or dimension.role == "read" or own in self.gains:
                    factor *= math.prod(maps[axis].norm_factor for axis in behind) if dimension.role != "shift" else 1
            if not math.isclose(factor, 1):
                found[tensor.name] = factor
        return found

    def measures(self, anatomy: Anatomy, name: str) -> set[str]:
        """The axes whose norms measure the output of the tensor of this name."""
        return self._axes_over(anatomy).get(self.names.of(name), set())

    def is_taken(self, norm: str) -> bool:
        """Whether a weight reads the output of a norm without a gain, or another norm measures it."""
        name = self.names.of(norm)
        taken = (names for names in self.taken.values())
        others = (names for path, names in self.measured.items() if path != norm)
        return any(self.names.of(other) == name for names in (*taken, *others) for other in names)

    def unscalable(self, norms: Iterable[str]) -> list[str]:
        """Those of the norms that measure something that is not the direct output of a weight (after a
        nonlinearity, a gate).
        """
        foreign = {self.names.of(name) for name in self.foreign}
        seen = {path: {self.names.of(name) for name in self.measured[path]} for path in norms if path in self.measured}
        return [path for path, names in seen.items() if not names or names & foreign]

    def gains_in_the_stream(self, anatomy: Anatomy, axis: str) -> list[str]:
        """Tensors that multiply unit by unit what norms over `axis` measure afterwards (DINOv2's layer
        scale).
        """
        over = self._axes_over(anatomy)
        return sorted(name for name in self.gains if axis in over.get(self.names.of(name), set()))

    def norms_in_the_stream(self, anatomy: Anatomy, axis: str) -> list[str]:
        """Norms that subtract the mean over `axis` and whose output such norms measure again. No padding is
        kept by these.
        """
        return [
            path
            for path, facts in anatomy.norms.items()
            if facts.centres
            and axis in anatomy.axes_over(path)
            and axis in self._axes_over(anatomy, path).get(self.names.of(_given_by(path, facts)), set())
        ]

    def _axes_over(self, anatomy: Anatomy, plain: str = "") -> dict[str, set[str]]:
        """{name: the axes of the norms that measure it}. `plain`: a norm without weights whose own output
        does not count.
        """
        over: dict[str, set[str]] = {}
        for norm, names in self.measured.items():
            axes = anatomy.axes_over(norm) if norm in anatomy.norms else hidden_axes(anatomy)
            for name in names - ({plain} if norm == plain else set()):
                over.setdefault(self.names.of(name), set()).update(axes)
        return over


def _given_by(path: str, facts: NormFacts) -> str:
    """The name of the output of a norm: that of its gain, or its own."""
    return path if facts.gain is None else f"{path}.{facts.gain}"


def hidden_axes(anatomy: Anatomy) -> set[str]:
    """The names of the axes of this kind."""
    return {axis.name for axis in anatomy.of_kind("hidden")}
