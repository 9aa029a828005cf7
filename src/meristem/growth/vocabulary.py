"""Vocabulary and learned positions: what stands for a token or a place keeps its row, and new rows are added behind.

New tokens take the mean of the old rows, in the embedding as in the head: the logits of the old tokens are what they were. New
positions continue the last one, or all are interpolated, which is not exact (Chen et al.: "Extending Context Window of Large
Language Models via Positional Interpolation", 2023, arXiv:2306.15595, has it for rotary positions).
"""

from __future__ import annotations

import torch

from meristem.algebra import AxisMap, UnitMap


def more_tokens(old: int, new: int) -> AxisMap:
    """Old rows first; the mean of the old ones for each new token."""
    rows = UnitMap.select(torch.arange(new) % old, old, (torch.arange(new) < old).double())
    return AxisMap(rows, rows, twins=False, filled=True)


def wider_projection(old: int, new: int) -> AxisMap:
    """The space that two towers are compared in: old units first, zeros behind them, which no length or angle notices."""
    rows = UnitMap.select(torch.arange(new) % old, old, (torch.arange(new) < old).double())
    return AxisMap(rows, rows, twins=False)


def more_positions(old: int, new: int, interpolate: bool = False) -> AxisMap:
    """Old rows first and the last one again for each new position, or every row between its two nearest."""
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
