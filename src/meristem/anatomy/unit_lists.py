"""Lists with a module for each unit of an axis of width, such as one norm for each head (StableLM's
q_layernorm.norms.0) or one expert (Switch's experts.expert_0).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

Lengths = dict[str, int]
NUMBER = re.compile(r"(?<=[._])\d+(?=\.)")  # that ends a part of a name
FOLDED = re.compile(r"(?<=[._])\d+(?=\.|$)")


def unit_lists(builds: Sequence[tuple[Mapping[str, int], Iterable[str]]]) -> dict[str, str]:
    """{prefix of a list, with * for the numbers in it: the axis for whose units it has modules}.

    Args:
        builds: (axis sizes, names of the tensors) of the present network, and of the same with single axes
            changed.
    """
    measured = [(sizes, _lengths(names)) for sizes, names in builds]
    found: dict[str, str] = {}
    for prefix, length in measured[0][1].items():
        lengths = [lengths.get(prefix, 0) for _, lengths in measured]
        if any(other != length for other in lengths):
            axes = (a for a in measured[0][0] if all(s[a] == n for (s, _), n in zip(measured, lengths, strict=True)))
            axis = next(axes, None)
            if axis is not None:
                found[_folded(prefix)] = axis
    return found


def units_of(name: str, lists: Mapping[str, str]) -> Iterator[tuple[str, int, int, int]]:
    """(axis, unit, where its number begins in the name, where it ends) for every such list that a tensor
    belongs to.
    """
    for match in NUMBER.finditer(name):
        axis = lists.get(_folded(name[: match.start() - 1]))
        if axis is not None:
            yield axis, int(match.group()), match.start(), match.end()


def _lengths(names: Iterable[str]) -> Lengths:
    """{prefix: how many numbers follow it}."""
    lengths: dict[str, int] = defaultdict(int)
    for name in names:
        for match in NUMBER.finditer(name):
            prefix = name[: match.start() - 1]
            lengths[prefix] = max(lengths[prefix], int(match.group()) + 1)
    return lengths


def _folded(prefix: str) -> str:
    return FOLDED.sub("*", prefix)
