"""UnitMap and AxisMap: properties over random maps, and the equations that everything rests on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from meristem.algebra import AxisMap, UnitMap

seeds = st.integers(0, 10_000)
sizes = st.integers(1, 6)


def random_map(old: int, new: int, seed: int, dense: bool) -> UnitMap:
    generator = torch.Generator().manual_seed(seed)
    if dense:
        return UnitMap.from_matrix(torch.randn(new, old, generator=generator, dtype=torch.float64))
    index = torch.randint(0, old, (new,), generator=generator)
    return UnitMap.select(index, old, torch.randn(new, generator=generator, dtype=torch.float64))


def random_duplication(old: int, extra: int, seed: int) -> AxisMap:
    generator = torch.Generator().manual_seed(seed)
    index = torch.cat([torch.arange(old), torch.randint(0, old, (extra,), generator=generator)])
    return AxisMap.duplicate(index[torch.randperm(old + extra, generator=generator)], old)


@given(sizes, sizes, seeds, st.booleans())
def test_apply_is_the_matrix_product(old, new, seed, dense):
    unit_map = random_map(old, new, seed, dense)
    tensor = torch.randn(3, old, 2, dtype=torch.float64)
    assert_close(unit_map.apply(tensor, 1), torch.einsum("no,aob->anb", unit_map.matrix(), tensor))
    grown = torch.randn(3, new, 2, dtype=torch.float64)
    assert_close(unit_map.transposed_apply(grown, 1), torch.einsum("no,anb->aob", unit_map.matrix(), grown))


@given(sizes, sizes, sizes, sizes, seeds, st.booleans(), st.booleans())
def test_after_kron_and_direct_sum_are_those_of_matrices(a, b, c, d, seed, dense, other_dense):
    first, second = random_map(a, b, seed, dense), random_map(b, c, seed + 1, other_dense)
    assert_close(second.after(first).matrix(), second.matrix() @ first.matrix())
    other = random_map(c, d, seed + 2, other_dense)
    assert_close(first.kron(other).matrix(), torch.kron(first.matrix(), other.matrix()))
    assert_close(first.direct_sum(other).matrix(), torch.block_diag(first.matrix(), other.matrix()))
    assert_close(first.squared().matrix(), first.matrix() ** 2)


def test_select_refuses_an_index_outside_the_axis():
    with pytest.raises(ValueError, match="outside an axis of 3 units"):
        UnitMap.select(torch.tensor([0, 3]), 3)


@given(sizes, st.integers(0, 6), seeds)
def test_duplication_preserves_and_its_dual_dual_is_itself(old, extra, seed):
    axis_map = random_duplication(old, extra, seed)
    assert axis_map.preservation_error() < 1e-12
    assert_close(axis_map.dual.dual.write.matrix(), axis_map.write.matrix())
    assert_close(axis_map.dual.write.matrix(), axis_map.read.matrix())


@given(sizes, st.integers(0, 4), st.integers(0, 4), seeds)
def test_composition_and_kron_of_preserving_maps_preserve(old, extra, more, seed):
    first = random_duplication(old, extra, seed)
    second = random_duplication(old + extra, more, seed + 1)
    assert second.after(first).preservation_error() < 1e-12
    assert first.kron(second).preservation_error() < 1e-12
    assert first.direct_sum(second).preservation_error() < 1e-12


@given(sizes, st.integers(0, 6), seeds)
def test_noise_is_unheard(old, extra, seed):
    axis_map = random_duplication(old, extra, seed)
    noise = torch.randn(4, axis_map.new_size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    projected = axis_map.project_noise(noise, 1)
    assert_close(projected @ axis_map.write.matrix(), torch.zeros(4, old, dtype=torch.float64))
    assert_close(axis_map.project_noise(projected, 1), projected)  # a projection


def test_noise_of_real_duplication_is_not_nothing():
    assert AxisMap.tile(3, 2).project_noise(torch.randn(4, 6), 1).abs().max() > 0.1


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), seeds)
def test_a_two_layer_network_keeps_its_function_and_its_gradients_ride_the_dual(inputs, hidden, extra, seed):
    """W' = write W read^T + Z (I - write read^T), g' = read g write^T, on y = V tanh(W x)."""
    torch.manual_seed(seed)
    axis = random_duplication(hidden, extra, seed)
    w, v = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((hidden, inputs), (2, hidden)))
    x, target = torch.randn(5, inputs, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    big_w = axis.write.apply(w.detach(), 0).requires_grad_()
    exact_v = axis.read.apply(v.detach(), 1)
    noisy_v = (exact_v + axis.project_noise(torch.randn_like(exact_v), 1)).requires_grad_()
    big_v = exact_v.clone().requires_grad_()

    def loss(first, second):
        return (((x @ first.T).tanh() @ second.T - target) ** 2).sum()

    assert_close(loss(big_w, noisy_v), loss(w, v))
    gradients = torch.autograd.grad(loss(w, v), (w, v))
    grown = torch.autograd.grad(loss(big_w, big_v), (big_w, big_v))
    assert_close(grown[0], axis.dual.write.apply(gradients[0], 0))
    assert_close(grown[1], axis.dual.read.apply(gradients[1], 1))


def test_a_lost_unit_is_refused():
    with pytest.raises(ValueError, match=r"old units \[1\] have no copy"):
        AxisMap.duplicate(torch.tensor([0, 2, 2]), 3)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="write maps 2 -> 3"):
        AxisMap(UnitMap.from_matrix(torch.ones(3, 2)), UnitMap.identity(2))


def test_twin_gram_is_the_number_of_copies_or_none():
    assert AxisMap.tile(3, 2).twin_gram() == 2.0
    assert AxisMap.duplicate(torch.tensor([0, 1, 1]), 2).twin_gram() is None


def test_spaced_units_are_the_frequencies_of_wider_sinusoids():
    """10000^(-i / d) of width d stands at place n i of the frequencies of width n d."""
    d, n = 4, 3
    old = 10_000.0 ** (-torch.arange(d, dtype=torch.float64) / d)
    new = 10_000.0 ** (-torch.arange(n * d, dtype=torch.float64) / (n * d))
    spaced = AxisMap.spaced(d, n)
    assert torch.allclose(spaced.read.transposed_apply(new, 0), old)
    assert spaced.preservation_error() == 0


def test_the_rest_of_an_axis_hears_each_unit_once():
    whole = AxisMap.tile(5, 2)
    rest = whole.rest(2)
    assert (rest.old_size, rest.new_size) == (3, 8)
    carried = whole.write.matrix() @ torch.arange(5.0, dtype=torch.float64)
    heard = rest.read.matrix().T @ carried[2:]
    assert torch.equal(heard, torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="keep their positions"):
        AxisMap.duplicate(torch.tensor([1, 0, 2]), 3).rest(1)
