"""What is stored in half precision is as good as its digits allow, and is judged by what its digits allow."""

from __future__ import annotations

import pico
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import meristem as ms
from meristem.algebra import AxisMap, UnitMap
from meristem.growth.tensors.rounding import round_shares

EXACT = 1e-12  # of float64: no weight was rounded on the way


def grown(family: str, method, dtype: torch.dtype, **changes) -> ms.Growth:
    return ms.Growth.of(pico.build(family, **{"tie_word_embeddings": False, **changes}).to(dtype), method)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "bert"])
@pytest.mark.parametrize("method", [
    ms.HyperCloning(width=2, noise=0.1), ms.HyperCloning(width=3, noise=0.0), ms.HyperCloning(width=3, noise=0.3),
    ms.LEMON(width=2),
])  # fmt: skip
def test_whole_copies_are_exact_as_stored(family, method, dtype):
    """Shares of a third and noise of any size are rounded, and still add up: the stored network is exact, not nearly so."""
    certificate = grown(family, method, dtype).certificate
    limit = 1e-6 if family in ("llama", "qwen3") else EXACT  # these run their rotary tables in float32
    assert certificate.relative_error <= limit
    assert certificate.rounding_allowance == 0
    assert certificate.unrounded_relative_error is None  # the stored weights say the same


def test_the_copies_differ_all_the_same():
    big = grown("llama", ms.HyperCloning(width=2, noise=0.1), torch.bfloat16).model
    first, second = big.model.layers[0].mlp.down_proj.weight.float().chunk(2, dim=1)
    spread = float((first - second).detach().std() / (first + second).detach().std())
    assert 0.05 < spread < 0.3


@pytest.mark.parametrize(
    "method", [ms.LEMON(hidden_size=48, num_attention_heads=6), ms.ZeroPadding(hidden_size=48, num_attention_heads=6)]
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "gemma2", "qwen3"])
def test_factors_that_must_be_rounded_stay_within_the_allowance(family, method):
    """A gain times sqrt(2/3) has no bfloat16 number; a wrong growth of the same weights lies far outside."""
    growth = grown(family, method, torch.bfloat16)
    certificate = growth.certificate
    assert certificate.holds
    assert certificate.unrounded_relative_error <= 1e-5
    assert 1e-5 < certificate.relative_error < certificate.tolerance < 0.2
    certificate_of_the_pair = ms.verify(growth.source, growth.model)
    assert certificate_of_the_pair.holds
    assert certificate_of_the_pair.relative_error == certificate.relative_error
    wrong = ms.Growth.of(growth.source, method, verify=False).model
    norm = next(p for n, p in reversed(list(wrong.named_parameters())) if p.dim() == 1)
    norm.data = norm.data.roll(1)
    assert not ms.verify(growth.source, wrong).holds


def test_a_growth_that_only_rounding_hides_is_caught_before_rounding(monkeypatch):
    """An error of a fifth of the allowance, made on purpose: the stored networks agree within it, the growth does not hold."""
    from meristem.growth.tensors import noisy_rows

    rounded = noisy_rows.rounded
    monkeypatch.setattr(
        noisy_rows,
        "rounded",
        lambda plan, made, dtype: rounded(plan, made * (1.002 if plan.name == "lm_head.weight" else 1.0), dtype),
    )
    with pytest.raises(ms.PreservationError, match=r"before rounding, 2\.0e-03"):
        grown("llama", ms.LEMON(hidden_size=48), torch.bfloat16)


@pytest.mark.parametrize("norm", ["plain", "grouped"])
@pytest.mark.parametrize("parents", [2, 3])
def test_self_fusion_in_half_precision_is_judged_like_growth(norm, parents):
    small = pico.build("llama", tie_word_embeddings=False).bfloat16()
    fusion = ms.fuse_with_certificate([small] * parents, ms.DeepFusion(norm=norm))
    assert fusion.certificate.holds
    assert fusion.certificate.holds_as_stored or fusion.certificate.unrounded_relative_error <= 1e-5
    assert fusion.certificate.relative_error <= (1e-6 if parents == 2 else 1e-2)  # a third of the head is rounded


def test_different_parents_fuse_exactly_in_half_precision():
    parents = [pico.build("llama", seed, tie_word_embeddings=False).bfloat16() for seed in range(3)]
    certificate = ms.fuse_with_certificate(parents, ms.DeepFusion(norm="grouped")).certificate
    assert certificate.holds
    assert certificate.holds_as_stored or certificate.unrounded_relative_error <= 1e-5


def test_rotary_tables_that_were_rounded_with_the_model_stay_rounded():
    """`model.bfloat16()` rounds them too, and the grown network has to attend at the same angles."""
    growth = grown("llama", ms.HyperCloning(width=2), torch.bfloat16)
    assert growth.model.model.rotary_emb.inv_freq.dtype == torch.bfloat16
    assert torch.equal(growth.model.model.rotary_emb.inv_freq, growth.source.model.rotary_emb.inv_freq)


@given(
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    copies=st.integers(2, 7),
    noise=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_shares_sum_to_the_old_column_exactly(dtype, copies, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    old = (torch.randn(6, 5, generator=generator) * 10 ** (2 * torch.rand(6, 5, generator=generator) - 2)).to(dtype)
    axis_map = AxisMap.tile(5, copies)
    shares = axis_map.read.apply(old.double(), 1)
    drawn = torch.randn(shares.shape, generator=generator, dtype=torch.float64)
    shares = shares + axis_map.project_noise(drawn * noise * shares.std(), 1)
    rounded = round_shares(shares, dtype, axis_map.heard, 1)
    assert rounded.dtype == dtype
    assert torch.equal(axis_map.heard.transposed_apply(rounded.double(), 1), old.double())


def test_uneven_copies_and_silent_units():
    """Units 0 three times, 1 twice of which one is silent, 2 once: each heard share sums up, the silent one is only rounded."""
    index, heard = torch.tensor([0, 1, 2, 0, 0, 1]), torch.tensor([1.0, 1, 1, 1, 1, 0])
    old = torch.tensor([[1.0, -0.3359375, 3.0]]).bfloat16()
    shares = UnitMap.select(index, 3, torch.tensor([1 / 3, 1, 1, 1 / 3, 1 / 3, 0.1])).apply(old.float(), 1)
    rounded = round_shares(shares, torch.bfloat16, UnitMap.select(index, 3, heard), 1)
    assert float(rounded[0, [0, 3, 4]].double().sum()) == 1.0
    assert rounded[0, 1] == old[0, 1]
    assert rounded[0, 2] == 3
    assert rounded[0, 5] == (old[0, 1].float() * 0.1).bfloat16()


def test_attention_kernels_for_half_precision_only_are_left_out_of_the_proof():
    from transformers import AttentionInterface

    def flash(module, query, *_, **__):
        assert query.dtype in (torch.bfloat16, torch.float16), "half precision only"
        raise AssertionError("not on this device")

    AttentionInterface.register("half_only_for_tests", flash)
    small = pico.build("llama")
    small.config._attn_implementation_internal = "half_only_for_tests"
    growth = ms.Growth.of(small.bfloat16(), ms.HyperCloning(width=2))
    assert growth.certificate.holds
    assert growth.source.config._attn_implementation == "half_only_for_tests"
    assert growth.model.config._attn_implementation == "half_only_for_tests"
