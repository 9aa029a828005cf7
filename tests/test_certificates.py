from __future__ import annotations

import pico
import pytest
import torch

import meristem as ms
from meristem.anatomy.inputs import example_inputs
from meristem.certificates.distance import as_distributions


def test_a_certificate_says_what_was_measured():
    small = pico.build("llama")
    certificate = ms.verify(small, ms.grow(small, ms.HyperCloning(width=2)))
    assert certificate.holds
    assert certificate.dtype == "float64"
    assert certificate.relative_error < 1e-6
    assert abs(certificate.kl_divergence) < 1e-9
    assert certificate.top1_agreement == 1.0
    assert certificate.inputs == "random: input_ids (2, 24)"


def test_another_network_does_not_hold():
    certificate = ms.verify(pico.build("llama"), pico.build("llama", seed=1))
    assert not certificate.holds
    assert certificate.kl_divergence > 0.01
    assert certificate.as_dict()["holds"] is False


def test_given_inputs_are_used_and_networks_left_alone():
    small = pico.build("gpt2").train()
    certificate = ms.verify(small, small, {"input_ids": torch.ones(1, 3, dtype=torch.long)})
    assert certificate.inputs == "given: input_ids (1, 3)"
    assert certificate.absolute_error == 0
    assert small.training
    assert next(small.parameters()).dtype == torch.float32


def test_outputs_of_other_shapes_are_refused():
    with pytest.raises(ms.MeristemError, match="vocabularies or kinds may differ"):
        ms.verify(pico.build("llama", vocab_size=70), pico.build("llama"))
    assert not ms.verify(pico.build("llama"), pico.build("llama", vocab_size=70)).holds  # on the tokens of both


def test_large_networks_are_judged_in_float32(monkeypatch):
    from meristem.certificates import passes

    monkeypatch.setattr(passes, "FLOAT64_LIMIT", 1000)
    small = pico.build("llama").train()
    certificate = ms.verify(small, ms.grow(small, ms.HyperCloning(width=2)))
    assert (certificate.dtype, certificate.tolerance) == ("float32", 1e-4)
    assert certificate.holds
    assert small.training


def test_a_nan_never_holds():
    broken = pico.build("llama")
    broken.lm_head.weight.data.fill_(float("nan"))
    assert not ms.verify(pico.build("llama"), broken).holds


def test_every_module_keeps_its_mode():
    """A frozen batch norm in a network that trains stays frozen; parents of a fusion, held together for a while, stay as they are."""
    small = pico.build("llama").train()
    small.model.layers[0].eval()
    modes = {name: module.training for name, module in small.named_modules()}
    ms.verify(small, ms.grow(small, ms.HyperCloning(width=2)))
    ms.fuse([small, small])
    assert {name: module.training for name, module in small.named_modules()} == modes


def test_networks_of_other_widths_are_compared_by_the_outputs_that_have_one_shape():
    small = pico.build("t5")
    assert ms.verify(small, ms.grow(small, ms.HyperCloning(width=2))).holds


@pytest.mark.parametrize("measured", ["growth", "verify"])
def test_new_tokens_take_probability_and_the_certificate_says_how_much(measured):
    """The divergence is the rise of the loss, which the large network's own logits give."""
    small = pico.build("llama")
    growth = ms.Growth.of(small, ms.LEMON(vocab_size=100))
    found = growth.certificate if measured == "growth" else ms.verify(small, growth.model)
    with torch.no_grad():
        inputs = example_inputs(small)
        before, after = (net.double()(**inputs).logits.log_softmax(-1) for net in (small, growth.model))
    taken = float(after[..., 67:].exp().sum(-1).mean())
    rise = float((before.exp() * (before - after[..., :67])).sum(-1).mean())
    assert found.holds
    assert found.new_tokens == 33
    assert found.new_token_probability == pytest.approx(taken, rel=1e-6)
    assert found.kl_divergence == pytest.approx(rise, rel=1e-6)
    assert rise > 0.1
    assert f"33 new tokens, not compared, take {taken:.2%} of the probability" in found.summary()


def test_tokens_that_are_never_written_have_no_part_in_the_divergence():
    a = torch.tensor([[0.0, 1.0, -torch.inf]])
    b = torch.tensor([[0.0, 2.0, -torch.inf]])
    want = (a[..., :2].softmax(-1) * (a[..., :2].log_softmax(-1) - b[..., :2].log_softmax(-1))).sum()
    assert as_distributions(a, b)["kl_divergence"] == pytest.approx(float(want))
    assert as_distributions(a, a)["kl_divergence"] == 0


@pytest.mark.parametrize("big, said", [
    ("llama", "the second LlamaForCausalLM does not run on inputs of the first"),
    ("vit", "LlamaForCausalLM and ViTForImageClassification cannot be compared"),
])  # fmt: skip
def test_a_second_network_that_does_not_run_is_named(big, said):
    small, other = pico.build("llama"), pico.build(big, **({"vocab_size": 5} if big == "llama" else {}))
    with pytest.raises(ms.MeristemError, match=said):
        ms.verify(small, other, {"input_ids": torch.full((1, 4), 60)})


def test_features_that_grew_are_no_new_tokens():
    """A bare output is called logits, whatever its last axis is."""

    class Features(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.table, self.up, self.down = (
                torch.nn.Embedding(11, width),
                *(torch.nn.Linear(width, width) for _ in "ab"),
            )

        def forward(self, tokens):
            h = self.table(tokens)
            return h + self.down(self.up(h).relu())

    anatomy, inputs = ms.Anatomy.infer(Features, {"width": 8}), {"tokens": torch.arange(11).view(1, 11)}
    found = ms.Growth.of(Features(8), ms.HyperCloning(width=2), anatomy=anatomy, inputs=inputs).certificate
    assert found.holds
    assert found.new_tokens is None
    assert abs(found.kl_divergence) < 1e-9
