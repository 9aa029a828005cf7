"""Pieces that several threads make come in their order, and are those that one thread makes."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from meristem import makers
from meristem.algebra import AxisMap
from meristem.growth.plans.tensor_plan import TensorPlan, Term
from meristem.growth.tensors import pieces
from meristem.growth.tensors.apply import grow_tensor
from meristem.makers import divide_threads, evenly, in_order


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    monkeypatch.setattr(makers, "_THREADS", [4])


STRETCHES = [(n, n + 1) for n in range(20)]


def test_each_thread_gets_an_even_stretch():
    assert evenly(10) == [(0, 2), (2, 5), (5, 8), (8, 10)]
    assert evenly(2) == [(0, 1), (1, 2)]
    assert evenly(0) == []


def test_pieces_come_in_order_whoever_is_done_first():
    begun = []

    def make(first, last):
        begun.append(threading.current_thread().name)
        time.sleep(0.01 * (first % 4 == 0))
        return first * 10

    assert list(in_order(make, iter(STRETCHES))) == [(s, 10 * s[0]) for s in STRETCHES]
    assert len(set(begun)) == 4


def test_no_more_than_one_waits_for_each_thread():
    made = []
    pieces_made = in_order(lambda a, b: made.append(a), STRETCHES)
    next(pieces_made)
    time.sleep(0.1)
    assert len(made) <= 5
    pieces_made.close()
    assert len(made) < len(STRETCHES)


def test_a_failure_surfaces_and_threads_of_torch_are_as_before():
    before = torch.get_num_threads()

    def make(first, last):
        if first == 7:
            raise OSError("no space left")
        return first

    with pytest.raises(OSError, match="no space left"):
        list(in_order(make, STRETCHES))
    assert torch.get_num_threads() == before
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [before]


def test_processes_share_the_threads(monkeypatch):
    divide_threads(2)
    assert makers._THREADS == [2]
    divide_threads(8)
    assert makers._THREADS == [1]
    names = {name for _, name in in_order(lambda a, b: threading.current_thread().name, STRETCHES)}
    assert names == {threading.current_thread().name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("copies", [2, 3])
def test_a_noisy_tensor_is_the_same_by_any_number_of_threads(copies, dtype, monkeypatch):
    """And keeps the function: the shares of each old column add up to it, in half precision exactly."""
    monkeypatch.setattr(pieces, "PIECE", 1 << 14)
    source = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows, columns = AxisMap.tile(96, copies), AxisMap.tile(64, copies)
    plan = TensorPlan("w", (Term("w"),), (rows, columns), ("write", "read"), noise=0.1)
    whole = grow_tensor(plan, {"w": source}.__getitem__)
    made = torch.zeros_like(whole)
    for (place,), piece in pieces.grow_pieces(plan, {"w": source}.__getitem__):
        made[place : place + len(piece)] = piece
    assert torch.equal(made, whole)
    sums = made.double().unflatten(1, (copies, 64)).sum(1)
    error = (sums - source.double().repeat(copies, 1)).abs().max()
    assert error <= {torch.float32: 1e-6, torch.float64: 1e-15}.get(dtype, 0)
    shares = made.double().unflatten(1, (copies, 64))
    noise = (shares - shares.mean(1, keepdim=True)).std() / (source.double() / copies).std()
    assert float(noise) == pytest.approx(0.1 * (1 - 1 / copies) ** 0.5, rel=0.05)
    parted = made.unflatten(0, (copies, 96))
    assert not torch.equal(parted[0], parted[1])  # rows are copies of one row that differ
