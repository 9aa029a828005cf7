"""Random numbers and products of the Gibbs chains, against their plain definitions."""

import pytest
import torch

from meristem.adaptive.rbm.draws import Draws
from meristem.adaptive.rbm.products import FEW, ones_times


def test_uniform_numbers_are_uniform_and_never_one():
    u = Draws(torch.Generator().manual_seed(0)).uniform((1000, 1001))
    assert u.dtype == torch.float32
    assert 0 <= float(u.min()) < 1e-5
    assert 1 - 1e-5 < float(u.max()) < 1
    counts = torch.histc(u, 100, 0, 1)
    assert float((counts - 10010).abs().max()) < 6 * 10010**0.5
    assert float(u.double().mean()) == pytest.approx(0.5, abs=5 * 12**-0.5 / u.numel() ** 0.5)
    assert torch.equal((u * 2**24).round() / 2**24, u)
    lag = torch.corrcoef(torch.stack([u.flatten()[:-1], u.flatten()[1:]]))[0, 1]
    assert abs(float(lag)) < 5 / u.numel() ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ones_come_with_their_probabilities(dtype):
    probability = torch.tensor([0.0, 1e-3, 0.25, 0.9, 1.0], dtype=dtype)
    ones = Draws(torch.Generator().manual_seed(1)).ones(probability.expand(200_000, -1))
    assert ones.dtype == dtype
    assert set(ones.unique().tolist()) == {0.0, 1.0}
    assert ones[:, 0].sum() == 0
    assert ones[:, 4].min() == 1
    torch.testing.assert_close(ones.mean(0), probability, atol=5e-3, rtol=0)


def test_draws_follow_from_the_generator():
    first, second = (Draws(torch.Generator().manual_seed(3)).uniform((4, 5)) for _ in range(2))
    assert torch.equal(first, second)
    generator = torch.Generator().manual_seed(3)
    assert not torch.equal(Draws(generator).uniform((4, 5)), Draws(generator).uniform((4, 5)))


@pytest.mark.parametrize("share", [0.0, FEW / 3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_rows_are_the_product(share, dtype):
    generator = torch.Generator().manual_seed(0)
    ones = (torch.rand(7, 50, generator=generator) < share).to(dtype)
    ones[0], ones[-1] = 0, 0  # rows without any, first and last too
    ones[3, 49] = 1
    rows = torch.randn(50, 11, generator=generator, dtype=dtype)
    torch.testing.assert_close(ones_times(ones, rows), ones @ rows)
