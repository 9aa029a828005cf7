"""Deep Fusion: the parents' mean where nothing stands in its way, and the measured gap where norms do."""

import pico
import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

import meristem as ms
from meristem.anatomy.inputs import example_inputs
from meristem.growth.fuse import fuse_with_certificate
from meristem.growth.fusion.mean import MeanOfParents
from meristem.growth.fusion.optimizer import fuse_state
from meristem.growth.optimizers.block_steps import MISSED, count_blocks_apart

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


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_different_resnets_are_their_mean(layer_type):
    def resnet(seed):
        torch.manual_seed(seed)
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "num_labels": 5}
        made = ResNetForImageClassification(ResNetConfig(layer_type=layer_type, **sizes)).eval()
        for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
        return made

    a, b = resnet(0), resnet(1)
    fusion = fuse_with_certificate([a, b])
    assert fusion.exact
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(fusion.model(x).logits, (a(x).logits + b(x).logits) / 2, atol=1e-5)


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
    a, b = pico.build("llama", rms_norm_eps=1e-12), pico.build("llama", 1, rms_norm_eps=1e-12)
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
    shared, own = fused["head.bias"], fused["up.weight"]
    assert shared["step"] == 2
    assert "missed_steps" not in shared
    assert own["step"] == 3
    blocks = [
        own["missed_steps"][rows, columns]
        for rows in (slice(10), slice(10, 20))
        for columns in (slice(6), slice(6, 12))
    ]
    assert [block.unique().tolist() for block in blocks] == [[0], [3], [3], [1]]


def test_the_mean_of_parents_is_a_network():
    a, b = pico.build("llama"), pico.build("llama", 1)
    inputs = example_inputs(a)
    with torch.no_grad():
        mean = MeanOfParents([a, b], [0.25, 0.75])(**inputs)["logits"]
        assert torch.allclose(mean, 0.25 * a(**inputs).logits + 0.75 * b(**inputs).logits, atol=1e-6)


@pytest.mark.parametrize("other, words", [
    (("gpt2", {}), "differ in type"),
    (("llama", {"num_hidden_layers": 3}), "differ in depth"),
    (("llama", {"vocab_size": 68}), "differ in vocab_size"),
    (("llama", {"head_dim": 16}), "differ in head_dim"),
    (("llama", {"num_key_value_heads": 4}), "it must be the same in both"),
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


def adam_by_hand(gradients, counts, beta1=0.9, beta2=0.99, rate=0.1, eps=1e-8):
    """The sum of Adam's steps for gradients behind `counts` earlier steps that found none, in float64."""
    first = second = total = torch.zeros_like(gradients[0])
    for number, gradient in enumerate(gradients, start=1):
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        own = number + counts
        total = total - rate * first / (1 - beta1**own) / ((second / (1 - beta2**own)).sqrt() + eps)
    return total


@pytest.mark.parametrize("foreach", [False, True])
def test_every_block_takes_the_steps_of_its_own_count(foreach):
    torch.manual_seed(0)
    counts = torch.tensor([[40.0, 0.0], [0.0, 25.0]], dtype=torch.float64)
    parameter = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, foreach=foreach)
    zero = torch.zeros_like(counts)
    optimizer.state[parameter] = {
        "step": torch.tensor(40.0),
        "exp_avg": zero.clone(),
        "exp_avg_sq": zero.clone(),
        MISSED: 40 - counts,
    }
    count_blocks_apart(optimizer)
    gradients = [torch.randn(2, 2, dtype=torch.float64) for _ in range(30)]
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    assert torch.allclose(parameter.detach(), adam_by_hand(gradients, counts), atol=1e-9)
    assert not torch.allclose(parameter.detach(), adam_by_hand(gradients, torch.full_like(counts, 40)), atol=1e-2)
    assert MISSED in optimizer.state[parameter]
    for _ in range(2000):
        optimizer.step()
    assert MISSED not in optimizer.state[parameter]  # it makes no difference any more


def test_a_fused_optimizer_makes_first_steps_of_one_learning_rate_in_cross_blocks():
    torch.manual_seed(0)
    parents, optimizers = [pico.build("gpt2", seed).train() for seed in (0, 1)], []
    tokens = torch.randint(3, 60, (4, 12))
    for parent in parents:
        optimizers.append(torch.optim.AdamW(parent.parameters(), lr=1e-3, weight_decay=0.0))
        for _ in range(3):
            parent.zero_grad()
            parent(input_ids=tokens, labels=tokens).loss.backward()
            optimizers[-1].step()
    fusion = fuse_with_certificate(parents)
    optimizer = ms.fuse_optimizer(fusion, optimizers, parents)
    before = {name: p.detach().clone() for name, p in fusion.model.named_parameters()}
    fusion.model.train()(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    name = "transformer.h.0.mlp.c_fc.weight"
    moved, missed = (
        fusion.model.get_parameter(name).detach() - before[name],
        optimizer.state[fusion.model.get_parameter(name)][MISSED],
    )
    cross = missed == 3
    assert 0.4 < cross.float().mean() < 0.6
    assert float(moved[cross].abs().max()) == pytest.approx(1e-3, rel=1e-3)
    assert float(moved[cross].abs().median()) == pytest.approx(1e-3, rel=1e-2)
    again = ms.fuse_optimizer(fuse_with_certificate([fusion.model] * 2), [optimizer] * 2, [fusion.model] * 2)
    twice = {entries["missed_steps"].unique().numel() for entries in again.state.values() if "missed_steps" in entries}
    assert twice == {3}  # blocks of four steps, of one, and of none
