"""The stream is scaled, not eps: padding is exact whatever the eps, wherever it stands, and whatever norms there are."""

from __future__ import annotations

import pico
import pytest
import torch
import transformers
from stepping import steps
from torch import nn

import meristem as ms
from meristem.anatomy.inputs import example_inputs, logits_of
from meristem.growth import Growth
from meristem.growth.like.config import rows

EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
WIDER = {"hidden_size": 48, "num_attention_heads": 6}
METHODS = (ms.LEMON(**WIDER), ms.ZeroPadding(**WIDER))


def with_eps(family: str, eps: float = 1e-2, **changes) -> nn.Module:
    """A pico model whose norms all have this eps, also where the config does not say it (OPT)."""
    name = next((n for n in EPS if hasattr(pico.build(family).config, n)), None)
    model = pico.build(family, **changes, **({name: eps} if name else {}))
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and name is None:
            assert module.eps == 1e-5
    return model


def gap(small: nn.Module, big: nn.Module) -> float:
    """max |dlogit| / max |logit|, of the old tokens."""
    inputs = example_inputs(small)
    a, b = logits_of(small, inputs), logits_of(big, inputs)
    return float((a - b[..., : a.shape[-1]]).abs().max() / a.abs().max())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize(
    "family",
    ["llama", "qwen3", "gemma2", "gemma3", "olmo2", "gpt2", "gpt_neox", "opt", "falcon", "mixtral", "t5", "vit"],
)
def test_a_large_eps_does_not_matter_and_stays_as_it_is(family, method, tmp_path):
    """1e-2 instead of 1e-6: what LEMON's own rule gets wrong by 1e-2 where eps serves two axes is exact."""
    small = with_eps(family)
    growth = Growth.of(small, method)
    assert growth.plans[0].preserves_function
    growth.model.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    assert gap(small, again) <= 1e-5
    for name in EPS:
        assert getattr(again.config, name, None) == getattr(small.config, name, None)
    assert getattr(again.config, "tie_word_embeddings", None) == getattr(small.config, "tie_word_embeddings", None)


def test_lemons_own_rule_is_still_there():
    """Its eps is 1e-2 . 32 / 48; for Qwen3, whose eps serves the heads too, it is off, and says so by failing its proof."""
    small = with_eps("llama")
    big = ms.grow(small, ms.LEMON(hidden_size=48, norms="eps"))
    assert big.config.rms_norm_eps == pytest.approx(1e-2 * 32 / 48)
    assert gap(small, big) <= 1e-5
    assert torch.allclose(big.model.embed_tokens.weight[:, :32], small.model.embed_tokens.weight)
    with pytest.raises(ms.PreservationError):
        ms.grow(with_eps("qwen3"), ms.LEMON(hidden_size=48, norms="eps"))


def test_each_role_takes_its_factor():
    """Llama, 32 -> 48: s = sqrt(1.5) on writers, 1 / s on the gains before readers, nothing on readers."""
    small = pico.build("llama")
    big = ms.grow(small, ms.ZeroPadding(hidden_size=48, noise=0.0))
    s = (48 / 32) ** 0.5
    ours, theirs = small.model.layers[0], big.model.layers[0]
    torch.testing.assert_close(theirs.self_attn.o_proj.weight[:32], ours.self_attn.o_proj.weight * s)
    torch.testing.assert_close(theirs.mlp.down_proj.weight[:32], ours.mlp.down_proj.weight * s)
    torch.testing.assert_close(theirs.input_layernorm.weight[:32], ours.input_layernorm.weight / s)
    torch.testing.assert_close(theirs.mlp.up_proj.weight[:, :32], ours.mlp.up_proj.weight)
    assert not theirs.self_attn.o_proj.weight[32:].any()


def test_norms_on_a_branch_and_readers_without_a_norm():
    """OLMo 2: its norms stand behind the blocks, so their gains stay, and q, k, v, gate, up read the stream divided by s."""
    small = pico.build("olmo2", num_key_value_heads=4)
    big = ms.grow(small, ms.LEMON(hidden_size=48, num_attention_heads=6, num_key_value_heads=6, noise=0.0))
    s, heads = (48 / 32) ** 0.5, (6 / 4) ** 0.5
    ours, theirs = small.model.layers[0], big.model.layers[0]
    torch.testing.assert_close(theirs.post_attention_layernorm.weight[:32], ours.post_attention_layernorm.weight)
    torch.testing.assert_close(theirs.mlp.up_proj.weight[:, :32], ours.mlp.up_proj.weight / s)
    torch.testing.assert_close(theirs.self_attn.q_proj.weight[:32, :32], ours.self_attn.q_proj.weight / s * heads)
    torch.testing.assert_close(theirs.self_attn.q_norm.weight[:32], ours.self_attn.q_norm.weight / heads)
    assert not theirs.self_attn.q_proj.weight[32:].any()  # new heads are silent where the norm measures
    assert theirs.self_attn.v_proj.weight[32:].any()  # and free where it does not
    assert gap(small, big) <= 1e-5


def test_a_norm_for_each_head():
    """StableLM has one norm module for each head: new heads take those of the heads that they copy."""
    config = transformers.StableLmConfig(
        vocab_size=67, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=64, qk_layernorm=True, layer_norm_eps=1e-2,
    )  # fmt: skip
    small = transformers.StableLmForCausalLM(config).eval()
    pico.randomise(small)
    wider = {"hidden_size": 48, "num_attention_heads": 12}
    for method in (ms.HyperCloning(width=2), ms.LEMON(**wider, num_hidden_layers=3), ms.ZeroPadding(**wider)):
        assert gap(small, ms.grow(small, method)) <= 1e-5


@pytest.mark.parametrize("method", [ms.LEMON(hidden_size=24), ms.ZeroPadding(hidden_size=24)], ids=lambda m: m.name)
@pytest.mark.parametrize("axis", ["hidden", "width", "n_embd"])
def test_the_width_may_have_any_name(axis, method):
    class Net(nn.Module):
        def __init__(self, **sizes):
            super().__init__()
            width, ffn = sizes[axis], sizes["ffn"]
            self.embed, self.norm, self.up = (
                nn.Embedding(20, width),
                nn.LayerNorm(width, eps=1e-2),
                nn.Linear(width, ffn),
            )
            self.down, self.last, self.head = nn.Linear(ffn, width), nn.LayerNorm(width, eps=1e-2), nn.Linear(width, 20)

        def forward(self, x):
            y = self.embed(x)
            return self.head(self.last(y + self.down(self.up(self.norm(y)).relu())))

    small, sizes = Net(**{axis: 16, "ffn": 32}).eval(), {axis: 16, "ffn": 32}
    tokens = {"x": torch.arange(20).view(2, 10)}
    big = ms.grow(small, method, anatomy=ms.Anatomy.infer(Net, sizes), inputs=tokens)
    assert big.embed.weight.shape == (20, 24)
    assert float((small(**tokens) - big(**tokens)).abs().max()) <= 1e-5


@pytest.mark.parametrize("family, method, axis, why", [
    ("bert", ms.LEMON(**WIDER), "hidden", "post-norm"),
    ("bloom", ms.LEMON(**WIDER), "hidden", "word_embeddings_layernorm subtracts the mean, and its output is measured again"),
    ("llama", ms.Net2Net(**WIDER), "hidden", "different numbers of copies"),
])  # fmt: skip
def test_what_cannot_be_exact_is_not_promised_and_says_why(family, method, axis, why):
    small = pico.build(family)
    growth = Growth.of(small, method)
    assert not growth.plans[0].preserves_function
    row = next(row for row in rows(growth.plans[0], small) if row.axis == axis)
    assert why in row.obstacle
    assert growth.certificate.relative_error > 1e-4


def test_what_comes_through_a_nonlinearity_cannot_be_scaled():
    """Whisper's stream begins with gelu(conv): no weight scales it, and no padding of it is the mean."""
    config = transformers.WhisperConfig(
        vocab_size=67, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=44, decoder_ffn_dim=44, num_mel_bins=8, max_source_positions=20, max_target_positions=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, suppress_tokens=None,
    )  # fmt: skip
    small = transformers.WhisperForConditionalGeneration(config).eval()
    inputs = {"input_features": torch.randn(1, 8, 40), "decoder_input_ids": torch.arange(6)[None]}
    growth = Growth.of(small, ms.LEMON(**WIDER), inputs=inputs)
    assert not growth.plans[0].preserves_function
    assert "nonlinearity" in rows(growth.plans[0], small, inputs)[0].obstacle
    assert Growth.of(small, ms.LEMON(width=2), inputs=inputs).certificate.holds


def test_the_padded_network_follows_the_small_ones_trajectory():
    """Stream scaling is one more amplitude: 20 steps, then 20 side by side with the optimizer grown. The norms' eps, which a smaller
    stream makes larger, is out of the way."""
    small = pico.build("llama", rms_norm_eps=1e-12).double()
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3, weight_decay=0.1, eps=1e-10)
    steps(small, optimizer, range(20))
    growth = Growth.of(small, ms.ZeroPadding(hidden_size=48, noise=0.0))
    grown = growth.grow_optimizer(optimizer, scale_learning_rate=True)
    ours, theirs = steps(small, optimizer, range(20, 40)), steps(growth.model, grown, range(20, 40))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-6


def dinov2(scales: str = "random") -> nn.Module:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4, num_labels=5,
        layer_norm_eps=1e-2,
    )  # fmt: skip
    small = transformers.Dinov2ForImageClassification(config).eval()
    pico.randomise(small)
    for name, parameter in small.named_parameters():
        if "lambda1" in name and scales == "of either sign":
            parameter.data = torch.where(torch.arange(32) % 2 == 0, parameter.data, -parameter.data)
        elif "lambda1" in name and scales == "zero":
            parameter.data.zero_()
    return small


@pytest.mark.parametrize("scales", ["random", "of either sign", "zero"])
def test_layer_scale_folds(scales):
    """DINOv2: the rows of new units carry the mean of g_k W_k over the new gain, which is the mean of |g_k|."""
    small = dinov2(scales)
    growth = Growth.of(small, ms.LEMON(hidden_size=48, num_attention_heads=6))
    assert growth.plans[0].preserves_function
    assert gap(small, growth.model) <= 1e-5
    assert all(row.obstacle == "" for row in rows(growth.plans[0], small))
    ours, theirs, s = small.dinov2.encoder.layer[1], growth.model.dinov2.encoder.layer[1], (48 / 32) ** 0.5
    gain, grown = ours.layer_scale2.lambda1, theirs.layer_scale2.lambda1
    torch.testing.assert_close(grown[:32], gain * s)
    torch.testing.assert_close(grown[32:], (gain.abs().mean() * s).expand(16))
    if scales == "random":
        bias = theirs.mlp.fc2.bias
        torch.testing.assert_close(bias[:32], ours.mlp.fc2.bias)
        torch.testing.assert_close(bias[32:] * grown[32:], ((gain * ours.mlp.fc2.bias).mean() * s).expand(16))
        up = theirs.mlp.fc1.weight[:, :32]  # "4 hidden" units are copied, not padded with a mean that GELU bends
        torch.testing.assert_close(up.view(4, 48, 32)[:, 32:], up.view(4, 48, 32)[:, :16])
