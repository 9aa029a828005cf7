"""Deep Fusion: the parents' mean where nothing stands in its way, and the measured gap where norms do."""

import pico
import pytest
import torch
from torch import nn

import meristem as ms
from meristem.anatomy.inputs import example_inputs
from meristem.growth.fuse import MeanOfParents, fuse_state, fuse_with_certificate

FAMILIES = ["llama", "gpt2", "gpt_neox", "qwen3", "gemma", "bert", "t5", "bart", "vit", "mixtral", "opt_projected"]


class Net(nn.Module):
    """A convolutional network with batch norms: its norms use stored statistics."""

    def __init__(self, channels, ffn):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, channels, 3), nn.BatchNorm2d(channels)
        self.up, self.down, self.head = nn.Linear(channels, ffn), nn.Linear(ffn, channels), nn.Linear(channels, 5)

    def forward(self, x):
        x = self.norm(self.first(x)).relu().mean((2, 3))
        return self.head(x + self.down(self.up(x).relu()))


def net(channels, ffn, seed):
    torch.manual_seed(seed)
    made = Net(channels, ffn).eval()
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0.5, 2)
    return made, ms.Anatomy.infer(Net, {"channels": channels, "ffn": ffn})


@pytest.mark.parametrize("family", FAMILIES)
def test_self_fusion_is_exact_with_its_noise_and_reloads(family, tmp_path):
    model = pico.build(family)
    fusion = fuse_with_certificate([model, model])
    assert fusion.exact
    assert fusion.certificate.holds
    fusion.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert ms.verify(model, again).holds
    plain = fuse_with_certificate([model, model], ms.DeepFusion(noise=0.0)).model
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("family", ["llama", "gemma", "t5", "bert"])
def test_untied_and_tied_three_times(family):
    model = pico.build(family, **({} if family == "t5" else {"tie_word_embeddings": family != "gemma"}))
    assert fuse_with_certificate([model] * 3).certificate.holds


def test_different_networks_without_such_norms_are_their_mean_at_any_widths_and_weights():
    (a, first), (b, second) = net(6, 10, 0), net(4, 14, 1)
    x = torch.randn(16, 2, 8, 8)
    fused = ms.fuse([a, b], ms.DeepFusion(weights=[0.7, 0.3]), anatomies=[first, second], inputs={"x": x})
    with torch.no_grad():
        assert torch.allclose(fused(x), 0.7 * a(x) + 0.3 * b(x), atol=1e-5)
        assert fused.first.weight.shape[0] == 10
        assert not fused.up.weight[:10, 6:].any()  # cross blocks
        labels = torch.randint(0, 5, (16,))  # cross-entropy is convex in logits
        loss = nn.functional.cross_entropy
        assert (
            loss(ms.fuse([a, b], anatomies=[first, second], inputs={"x": x})(x), labels)
            <= (loss(a(x), labels) + loss(b(x), labels)) / 2
        )
    three = ms.fuse([a, b, a], anatomies=[first, second, first], inputs={"x": x})
    with torch.no_grad():
        assert torch.allclose(three(x), (2 * a(x) + b(x)) / 3, atol=1e-5)


def test_different_transformers_of_different_widths_report_their_gap():
    a = pico.build("llama")
    b = pico.build("llama", 1, hidden_size=64, num_attention_heads=8, num_key_value_heads=4, intermediate_size=52)
    fusion = fuse_with_certificate([a, b])
    assert fusion.model.config.hidden_size == 96
    assert fusion.model.config.num_attention_heads == 12
    assert fusion.model.config.intermediate_size == 96
    assert not fusion.exact
    assert 1e-3 < fusion.certificate.relative_error < 2


def scaled_stream(model, factor):
    """The same function of a pre-norm network, its residual stream `factor` times as large."""
    with torch.no_grad():
        model.model.embed_tokens.weight *= factor
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= factor
            layer.mlp.down_proj.weight *= factor
    return model


def test_equalised_streams_close_most_of_the_gap():
    a, b = pico.build("llama"), pico.build("llama", 1)
    for model in (a, b):
        model.config.rms_norm_eps = 1e-12
    inputs = example_inputs(a)
    alike = fuse_with_certificate([a, b], inputs=inputs).certificate.relative_error
    scaled_stream(b, 5.0)
    plain = fuse_with_certificate([a, b], inputs=inputs).certificate
    equalised = fuse_with_certificate([a, b], ms.DeepFusion(norm="equalised"), inputs=inputs).certificate
    assert equalised.kl_divergence < 0.7 * plain.kl_divergence
    assert equalised.relative_error < 1.3 * alike
    with pytest.raises(ms.MeristemError, match="pre-norm"):
        ms.fuse([pico.build("bert"), pico.build("bert", 1)], ms.DeepFusion(norm="equalised"))


def test_moments_are_gradients_of_the_mean_in_the_parents_own_blocks():
    (a, anatomy), x = net(6, 10, 0), torch.randn(16, 2, 8, 8)
    fusion = fuse_with_certificate([a, a], ms.DeepFusion(noise=0.0), anatomies=[anatomy] * 2, inputs={"x": x})
    labels = torch.randint(0, 5, (16,))
    for model in (a, fusion.model):
        nn.functional.cross_entropy(model(x), labels).backward()
    state = {
        n: {"exp_avg": p.grad, "exp_avg_sq": p.grad**2, "step": torch.tensor(3.0)} for n, p in a.named_parameters()
    }
    fused = fuse_state(fusion, [state, {n: {**e, "step": torch.tensor(2.0)} for n, e in state.items()}])
    for name, parameter in fusion.model.named_parameters():
        own = fused[name]["exp_avg"] != 0
        assert torch.allclose(fused[name]["exp_avg"][own], parameter.grad[own], atol=1e-6), name
        assert torch.allclose(fused[name]["exp_avg_sq"][own], parameter.grad[own] ** 2, atol=1e-6), name
        assert fused[name]["step"] == 2


def test_the_mean_of_parents_is_a_network():
    a, b = pico.build("llama"), pico.build("llama", 1)
    inputs = example_inputs(a)
    with torch.no_grad():
        mean = MeanOfParents([a, b], [0.25, 0.75])(**inputs)
        assert torch.allclose(mean, 0.25 * a(**inputs).logits + 0.75 * b(**inputs).logits, atol=1e-6)


@pytest.mark.parametrize("other, words", [
    (("gpt2", {}), "differ in type"),
    (("llama", {"num_hidden_layers": 3}), "differ in depth"),
    (("llama", {"vocab_size": 68}), "differ in vocab_size"),
    (("llama", {"head_dim": 16}), "differ in head_dim"),
    (("llama", {"num_key_value_heads": 4}), "they have to agree"),
])  # fmt: skip
def test_what_does_not_fit_is_named(other, words):
    family, changes = other
    with pytest.raises(ms.MeristemError, match=words):
        ms.fuse([pico.build("llama"), pico.build(family, **changes)])


def test_bad_input():
    llama = pico.build("llama")
    with pytest.raises(ms.MeristemError, match="at least two"):
        ms.fuse([llama])
    with pytest.raises(ms.MeristemError, match="ALiBi"):
        ms.fuse([pico.build("bloom")] * 2)
    with pytest.raises(ms.MeristemError, match="sum to 1"):
        ms.fuse([llama, llama], ms.DeepFusion(weights=[0.5, 0.6]))
    with pytest.raises(ms.MeristemError, match="noise"):
        ms.DeepFusion(noise=-1)
