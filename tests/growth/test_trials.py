"""What only a trial, or a second look at the whole output, can tell; and proofs that do not hide an error."""

from __future__ import annotations

import pico
import pytest
import torch
from torch import nn

import meristem as ms
from meristem.anatomy.precision import in_precision
from meristem.certificates import relative_error


class Matching(nn.Module):
    """Scores each of two streams against the other: both features grow, so their product does too."""

    def __init__(self, channels: int, scale: bool = True) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, channels), nn.Linear(6, channels)
        self.scale = nn.Parameter(torch.tensor([1.7])) if scale else None
        self.bias = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x):
        scores = self.left(x) @ self.right(x.flip(0)).T
        return (scores * self.scale if self.scale is not None else scores) + self.bias


@pytest.mark.parametrize("scale", [True, False])
def test_a_product_of_two_grown_features_is_scaled_back(scale):
    torch.manual_seed(0)
    small, inputs = Matching(8, scale), {"x": torch.randn(4, 6)}
    anatomy = ms.Anatomy.infer(lambda channels: Matching(channels, scale), {"channels": 8})
    growth = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0), anatomy=anatomy, inputs=inputs)
    assert growth.certificate.relative_error < 1e-7
    torch.testing.assert_close(growth.model(**inputs), small(**inputs), rtol=1e-5, atol=1e-5)
    if scale:  # the one number takes it up; the bias is added afterwards and stays
        assert torch.equal(growth.model.scale, small.scale / 2)
        assert torch.equal(growth.model.bias, small.bias)


def test_complex_tables_stay_complex_in_a_proof():
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 4)
            self.register_buffer("turns", torch.polar(torch.ones(2), torch.tensor([0.5, 1.5])), persistent=False)

    model = Turned()
    exact = in_precision(model, torch.float64)
    assert exact.turns.dtype == torch.complex128
    assert torch.equal(exact.turns, model.turns.to(torch.complex128))
    assert exact.proj.weight.dtype == torch.float64
    assert model.proj.weight.dtype == torch.float32
    assert in_precision(model, torch.bfloat16).turns.dtype == torch.complex64


@pytest.mark.parametrize("never", [-1e4, -1e9, -3e38])
def test_masked_entries_hide_no_error_of_the_others(never):
    a = torch.linspace(-2, 2, 60)
    b = a.clone()
    a[0], b[0] = never, never
    assert relative_error(a, b) == 0.0
    b[30] += 0.2
    assert relative_error(a, b) == pytest.approx(0.1, rel=1e-3)  # of the largest of the others, 2
    b[30], b[0] = a[30], never * 0.99
    assert relative_error(a, b) == (pytest.approx(0.01, rel=1e-3) if never > -1e30 else float("inf"))


def test_a_few_large_entries_still_set_the_scale():
    a = torch.linspace(-2, 2, 60)
    a[0] = 500.0
    assert relative_error(a, a + 0.5) == pytest.approx(1e-3, rel=1e-6)


def test_embeddings_of_unit_norm_stay_so():
    from meristem.growth.proofs.expected import expected_outputs

    small = pico.build("llama")
    plans = ms.Growth.of(small, ms.HyperCloning(width=2)).plans
    a = nn.functional.normalize(torch.randn(3, 32), dim=-1)
    wanted = expected_outputs(plans, {"embeds": a}, {"embeds": torch.cat([a, a], -1) / 2**0.5})["embeds"]
    torch.testing.assert_close(wanted, torch.cat([a, a], -1).double() / 2**0.5, rtol=1e-6, atol=1e-6)
    wanted = expected_outputs(plans, {"states": 3 * a}, {"states": 3 * torch.cat([a, a], -1)})["states"]
    torch.testing.assert_close(wanted, 3 * torch.cat([a, a], -1).double(), rtol=1e-6, atol=1e-6)


def test_a_width_that_shapes_nothing_is_said():
    config = pico.build("llama").config

    class Fixed(type(pico.build("llama"))):
        """A network whose own width is another one than its config says."""

        def __init__(self, config):
            import copy

            config = copy.deepcopy(config)
            config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.intermediate_size = (
                32,
                4,
                2,
                44,
            )
            super().__init__(config)

    with pytest.raises(
        ms.MeristemError, match=r"no width field that Meristem knows: hidden_size is in its config and shapes none"
    ):
        ms.grow(Fixed(config), ms.HyperCloning(width=2))


def test_networks_whose_parts_do_not_fit_together_are_said_to():
    class Indexing(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(4, channels), nn.Linear(channels, 2)

        def forward(self, x):
            hidden = self.into(x)
            return self.out(hidden) if hidden.shape[-1] == 8 else [self.out(hidden)][hidden.shape[-1]]

    small, inputs = Indexing(8), {"x": torch.randn(3, 4)}
    with pytest.raises(ms.MeristemError, match="the second Indexing does not run on inputs of the first"):
        ms.grow(small, ms.HyperCloning(width=2), anatomy=ms.Anatomy.infer(Indexing, {"channels": 8}), inputs=inputs)
