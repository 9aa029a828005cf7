from __future__ import annotations

import pico
import pytest
import torch

import meristem as ms


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
    with pytest.raises(ms.MeristemError, match="cannot be compared"):
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
