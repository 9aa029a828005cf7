"""What the name of an axis says: its kind, its scope, and which part of another axis it is.

Layouts ("2 ffn"), sizes and maps refer to axes by name. `AxisRef` answers every question about a name except
whether two are equal. No other file parses names.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace

from meristem.anatomy.conventions import KINDS

_PART = re.compile(r"(?:over(\d+)|(frequencies|pairs)|after(\d+))_(\w+)")


@dataclass(frozen=True)
class Part:
    """Which units of another axis it has: a share (`over8_hidden`, an eighth), all but the first few
    (`after32_hidden`), the frequencies of sinusoidal positions of that width, with a sine and a cosine for
    each (`frequencies_hidden`), or the pairs of units to which such a sine and cosine are added
    (`pairs_hidden`).
    """

    divisor: int = 1
    skipped: int = 0
    frequencies: bool = False
    pairs: bool = False

    def size(self, whole: int) -> int:
        """The number of units, from the number of units of the whole."""
        return (whole - self.skipped) // self.divisor

    def __str__(self) -> str:
        if self.frequencies:
            return "frequencies_"
        if self.pairs:
            return "pairs_"
        return f"after{self.skipped}_" if self.skipped else f"over{self.divisor}_"


@dataclass(frozen=True)
class AxisRef:
    """The parsed name of an axis: "encoder_kv_heads" has the kind "kv_heads" and the scope "encoder_".

    `own` is the name of an axis that follows no convention ("channels"). It counts as hidden, because it can
    be widened.
    """

    kind: str
    scope: str = ""
    part: Part | None = None
    own: str = ""

    @staticmethod
    @functools.cache
    def parse(name: str) -> AxisRef:
        """Parse a name such as "decoder_ffn" or "over8_hidden"."""
        match = _PART.fullmatch(name)
        if match:
            divisor, halves, skipped, whole = match.groups()
            part = Part(
                2 if halves else int(divisor or 1), int(skipped or 0), halves == "frequencies", halves == "pairs"
            )
            return replace(AxisRef.parse(whole), part=part)
        kind = next((kind for kind in KINDS if name == kind or name.endswith("_" + kind)), None)
        return AxisRef("hidden", own=name) if kind is None else AxisRef(kind, name.removesuffix(kind))

    @property
    def whole(self) -> str:
        """The name of the axis of which it is a part, or its own name."""
        return self.own or self.scope + self.kind

    def of_kind(self, kind: str) -> str:
        """The name of the axis of another kind in the same scope, for the same part: "encoder_group" for
        "encoder_kv_heads".
        """
        return str(replace(self, kind=kind, own=""))

    def __str__(self) -> str:
        return f"{self.part or ''}{self.whole}"


BETWEEN, LAST = "between_", "last_"


def layers_of(axis: str) -> str | None:
    """The axis of depth that a table follows if it has no entry for some layers: "layers" for
    `between_layers`, which has one for all but the last, and for `last_layers`, which has one for the last
    few. None for any other axis.
    """
    prefix = next((prefix for prefix in (BETWEEN, LAST) if axis.startswith(prefix)), None)
    return None if prefix is None else axis.removeprefix(prefix)


def kind_of(axis: str) -> str:
    """The kind of an axis: "ffn" for "decoder_ffn". An axis of another name ("channels", "width") counts as
    hidden, because it can be widened.
    """
    return AxisRef.parse(axis).kind


def is_part(axis: str) -> bool:
    """Whether it follows from another axis, as `over8_hidden` from `hidden`."""
    return AxisRef.parse(axis).part is not None


def whole_of(axis: str) -> str:
    """The axis of which it is a part, or itself if it is not a part."""
    return AxisRef.parse(axis).whole


def part_of(axis: str, divisor: int) -> str:
    """The name of a share of an axis: one of `divisor` equal parts. Its kind is that of the whole, so it
    grows with it.
    """
    return f"{Part(divisor)}{axis}"


def rest_of(axis: str, skipped: int) -> str:
    """The name of an axis without its first units."""
    return f"{Part(skipped=skipped)}{axis}"


def divisor_of(axis: str) -> int:
    """How many of it make the whole: 8 for `over8_hidden`, 2 for frequencies and pairs, 1 for `hidden`."""
    part = AxisRef.parse(axis).part
    return part.divisor if part else 1


def is_frequencies(axis: str) -> bool:
    """Whether it is the frequencies of sinusoidal positions."""
    part = AxisRef.parse(axis).part
    return part is not None and part.frequencies


def are_pairs(axis: str) -> bool:
    """Whether it is the pairs of units to which sines and cosines are added."""
    part = AxisRef.parse(axis).part
    return part is not None and part.pairs


def pairs_of(axis: str) -> str:
    """The name of the pairs of an axis: the units 2i and 2i + 1 of `hidden` are pair i of `pairs_hidden`."""
    return f"{Part(2, pairs=True)}{axis}"


def skipped_by(axis: str) -> int:
    """How many units of the whole come before it: 32 for `after32_hidden`, 0 for others."""
    part = AxisRef.parse(axis).part
    return part.skipped if part else 0
