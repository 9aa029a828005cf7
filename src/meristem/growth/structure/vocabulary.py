"""Vocabulary and learned positions: each token or position keeps its row, and new rows follow.

New tokens take the mean of the old rows, in the embedding and in the head. The logits of the old tokens do
not change. New positions repeat the last one, or all are interpolated, which is not exact (for rotary
positions see Chen et al.: "Extending Context Window of Large Language Models via Positional Interpolation",
2023, arXiv:2306.15595).
"""

from __future__ import annotations

import torch

from meristem.algebra import AxisMap, UnitMap


def more_tokens(old: int, new: int) -> AxisMap:
    """Old rows first, then the mean of the old ones for each new token."""
    rows = UnitMap.select(torch.arange(new) % old, old, (torch.arange(new) < old).double())
    return AxisMap(rows, rows, twins=False, filled=True)


def wider_projection(old: int, new: int) -> AxisMap:
    """The space in which two towers are compared: old units first, then zeros, which change no length or
    angle.
    """
    rows = UnitMap.select(torch.arange(new) % old, old, (torch.arange(new) < old).double())
    return AxisMap(rows, rows, twins=False)


def more_positions(old: int, new: int, interpolate: bool = False) -> AxisMap:
    """Old rows first, then the last one again for each new position. Or every row between its two nearest, if
    `interpolate`.
    """
    if not interpolate:
        rows = UnitMap.select(torch.arange(new).clamp(max=old - 1), old)
        kept = UnitMap.select(torch.arange(new).clamp(max=old - 1), old, (torch.arange(new) < old).double())
        return AxisMap(rows, kept, heard=kept, twins=False)
    place = torch.arange(new, dtype=torch.float64) * (old - 1) / max(1, new - 1)
    below = place.floor().long().clamp(max=old - 2)
    matrix = torch.zeros(new, old, dtype=torch.float64)
    matrix[torch.arange(new), below] = 1 - (place - below)
    matrix[torch.arange(new), below + 1] += place - below
    rows = UnitMap.from_matrix(matrix)
    return AxisMap(rows, rows, twins=False)
