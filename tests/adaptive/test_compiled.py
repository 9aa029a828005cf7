"""Compiled Gibbs chains, against the same chains in torch."""

import pytest
import torch

from meristem.adaptive.rbm import compiled
from meristem.adaptive.rbm import machine as machine_module
from meristem.adaptive.rbm.machine import Machine
from meristem.adaptive.rbm.order import Infinite, Ordered, Unordered
from meristem.adaptive.rbm.visible import BinaryVisible

ORDERS = [Unordered(), Ordered(), Ordered(2.0, "constant"), Infinite(), Infinite(1.5)]


def both(machine, v, steps, monkeypatch):
    """The states that compiled and torch's chains reach with the same random numbers."""
    reached = []
    for there in (True, False):
        monkeypatch.setattr(machine_module, "HAS_NUMBA", there)
        reached.append(machine.gibbs(v, steps, torch.Generator().manual_seed(1)))
    return reached


def drawn(order, hidden, visible, size=0.3):
    g = torch.Generator().manual_seed(hidden)
    parameters = (torch.randn(shape, generator=g) for shape in ((hidden, visible), (hidden,), (visible,)))
    weights, hidden_bias, visible_bias = parameters
    return Machine(size * weights, hidden_bias - 0.5, visible_bias, order, BinaryVisible())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("hidden", "visible", "chains"), [(1, 3, 2), (37, 50, 2), (130, 61, 10)])
def test_states_are_those_of_torch(order, hidden, visible, chains, monkeypatch):
    machine = drawn(order, hidden, visible)
    start = torch.rand(chains, visible, generator=torch.Generator().manual_seed(2))  # shares, as of grey images
    kept = start.clone()
    for steps in (2, 7):
        ours, theirs = both(machine, start, steps, monkeypatch)
        assert set(ours.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(ours, theirs)
        assert torch.equal(start, kept)


@pytest.mark.parametrize("order", ORDERS)
def test_what_units_receive_may_be_large(order, monkeypatch):
    """Scores of z beyond what an exponential in float32 holds, in both directions and back."""
    machine = drawn(order, 60, 40, size=40.0)
    machine.hidden_bias[:20] = 30
    machine.hidden_bias[20:40] = -30
    ours, theirs = both(machine, torch.ones(32, 40), 3, monkeypatch)
    assert (ours != theirs).float().mean() < 0.01  # a score of thousands is rounded to a thousandth
    assert 0 < float(ours.mean()) < 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [0.3, 40.0])
def test_gradients_are_those_of_torch(order, size, monkeypatch):
    machine = drawn(order, 37, 50, size)
    g = torch.Generator().manual_seed(3)
    v, shares = torch.rand(23, 50, generator=g).round(), torch.randn(23, generator=g)
    v[3] = torch.rand(50, generator=g)
    monkeypatch.setattr(machine_module, "HAS_NUMBA", False)
    exact = machine.to(torch.float64).gradients(v.double(), shares.double())
    monkeypatch.setattr(machine_module, "HAS_NUMBA", True)
    ours = machine.gradients(v, shares)
    for name in ("weights", "hidden_bias", "visible_bias", "last_survival"):
        torch.testing.assert_close(getattr(ours, name).double(), getattr(exact, name), atol=2e-4, rtol=1e-4)


def test_an_odd_number_of_chains_follows_the_same_law(monkeypatch):
    machine = drawn(Infinite(1.2), 31, 21)
    ours, theirs = both(machine, torch.zeros(20_001, 21), 4, monkeypatch)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(ours.T.cov(), theirs.T.cov(), atol=0.01, rtol=0)
    assert not torch.equal(ours, theirs)


def test_chains_do_not_depend_on_the_number_of_threads(monkeypatch):
    reached = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        reached.append(drawn(Infinite(), 37, 50).gibbs(torch.zeros(10, 50), 5, torch.Generator().manual_seed(1)))
    assert torch.equal(*reached)


def test_many_steps_draw_their_numbers_in_parts(monkeypatch):
    machine = drawn(Infinite(), 37, 50)
    whole = machine.gibbs(torch.zeros(10, 50), 7, torch.Generator().manual_seed(1))
    monkeypatch.setattr(compiled, "NUMBERS", 2000)  # two steps
    assert torch.equal(machine.gibbs(torch.zeros(10, 50), 7, torch.Generator().manual_seed(1)), whole)


def test_other_machines_go_on_in_torch(monkeypatch):
    machine = drawn(Infinite(), 37, 50)
    ours, theirs = both(machine.to(torch.float64), torch.zeros(4, 50, dtype=torch.float64), 3, monkeypatch)
    assert ours.dtype == torch.float64
    assert torch.equal(ours, theirs)
