"""A tensor made in pieces of rows is the tensor made at once, for every kind of map."""

from __future__ import annotations

import pytest
import torch

from meristem.algebra import AxisMap, UnitMap
from meristem.growth.plans.tensor_plan import TensorPlan, Term
from meristem.growth.tensors import pieces
from meristem.growth.tensors.apply import grow_tensor
from meristem.growth.tensors.pieces import grow_pieces
from meristem.growth.widths.padding import pad

N = 12
MAPS = {
    "unchanged": None,
    "tile": AxisMap.tile(N, 3),
    "duplicate": AxisMap.duplicate(torch.tensor([*range(N), 3, 3, 0, 7]), N),
    "select": AxisMap.select(torch.tensor([1, 2, 3, 8, 9]), N),
    "padded": pad(N, 20, 1, mean=False),
    "mean-padded": pad(N, 20, 1, mean=True),
    "dense": AxisMap(UnitMap.from_matrix(torch.ones(5, N)), UnitMap.from_matrix(torch.ones(5, N))),
}


COPIES = ["unchanged", "tile", "select"]  # which whole numbers can ride
CASES = [
    (rows, columns, dtype)
    for dtype in (torch.float32, torch.bfloat16, torch.int64)
    for rows in (COPIES if dtype == torch.int64 else MAPS)
    for columns in (COPIES if dtype == torch.int64 else MAPS)
]


@pytest.mark.parametrize("rows, columns, dtype", CASES, ids=str)
def test_pieces_make_the_whole(rows, columns, dtype, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 4 * N * 5)
    monkeypatch.setattr(pieces, "CACHED", 4 * N * 2)
    roles = ("write", "fixed") if dtype == torch.int64 else ("write", "read")
    source = (torch.randn(N, N, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    for scale, noise in ((1.0, 0.0), (0.3, 0.0), (1.0, 0.1)) if dtype != torch.int64 else ((1.0, 0.0),):
        plan = TensorPlan("w", (Term("w"),), (MAPS[rows], MAPS[columns]), roles, scale=scale, noise=noise)
        whole = grow_tensor(plan, {"w": source}.__getitem__)
        made = torch.zeros_like(whole)
        filled = torch.zeros(len(whole), dtype=torch.long)
        for places, piece in grow_pieces(plan, {"w": source}.__getitem__):
            for place in places:
                made[place : place + len(piece)] = piece
                filled[place : place + len(piece)] += 1
        assert torch.equal(made, whole)
        assert bool((filled == 1).all())
        assert whole.data_ptr() != source.data_ptr()


def test_scaling_before_copying_is_scaling_after_it():
    units = UnitMap.select(torch.tensor([2, 0, 0, 1]), 3, torch.tensor([1.0, 0.3, 0.3, 0.7]))
    tensor = torch.randn(5, 3)
    assert torch.equal(units.gather(units.scale_sources(tensor, 1), 1), units.apply(tensor, 1))
    uneven = UnitMap.select(torch.tensor([0, 0]), 1, torch.tensor([1.0, 0.5]))
    assert uneven.source_factor is None
