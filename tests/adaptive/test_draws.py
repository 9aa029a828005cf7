"""Random numbers of the Gibbs chains, against what they are to be."""

import pytest
import torch

from meristem.adaptive.rbm.draws import Draws


def test_uniform_numbers_are_uniform():
    u = Draws(torch.Generator().manual_seed(0)).uniform((1000, 1001))
    assert u.dtype == torch.float32
    assert 0 <= float(u.min()) < 1e-5
    assert 1 - 1e-5 < float(u.max()) <= 1
    counts = torch.histc(u, 100, 0, 1)
    assert float((counts - 10010).abs().max()) < 6 * 10010**0.5
    assert float(u.double().mean()) == pytest.approx(0.5, abs=5 * 12**-0.5 / u.numel() ** 0.5)
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
