"""Depth of networks whose blocks end in a norm: silent blocks hand gain and bias on, and the function stays."""

from __future__ import annotations

import pico
import pytest
import torch
import transformers
from stepping import steps
from test_stream import gap
from torch import nn

import meristem as ms
from meristem.anatomy.norms import norm_eps
from meristem.growth import Growth
from meristem.growth.like.config import rows
from meristem.growth.tensors.apply import grow_tensor

LAST = "bert.encoder.layer.{}.output.LayerNorm.{}"
MIDDLE = "bert.encoder.layer.{}.attention.output.LayerNorm.{}"
ENCODER = {"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 44,
           "max_position_embeddings": 64, "layer_norm_eps": 1e-12}  # fmt: skip


def relative() -> nn.Module:
    """A DeBERTa, whose positions are relative: another post-norm block with the same norms."""
    config = transformers.DebertaV2Config(
        **ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], pad_token_id=0
    )
    model = transformers.DebertaV2ForMaskedLM(config).eval()
    pico.randomise(model)
    return model


def electra() -> nn.Module:
    model = transformers.ElectraForMaskedLM(transformers.ElectraConfig(**ENCODER, embedding_size=16)).eval()
    pico.randomise(model)
    return model


NETWORKS = {
    "bert": lambda: pico.build("bert"),
    "roberta": lambda: pico.build("roberta"),
    "electra": electra,
    "deberta": relative,
}
METHODS = {
    "twice as deep": ms.IdentityBlocks(depth=2),
    "two silent blocks in a row": ms.IdentityBlocks(num_hidden_layers=5),
    "wider too": ms.LEMON(width=2, num_hidden_layers=3, noise=0.0),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_depth_of_post_norm_networks_is_promised_and_exact(network, method, tmp_path):
    small = NETWORKS[network]()
    growth = Growth.of(small, method)
    assert growth.plans[0].preserves_function
    assert growth.certificate.relative_error <= 1e-9
    growth.model.save_pretrained(tmp_path)
    assert gap(small, type(small).from_pretrained(tmp_path).eval()) <= 1e-5
    assert all(row.obstacle == "" for row in rows(growth.plans[0], small))


def test_who_has_which_gain():
    """2 layers to 5: layer 0 is followed by one silent block, layer 1 by two (spread evenly: 0 0 1 1 1)."""
    small = pico.build("bert")
    growth = Growth.of(small, ms.IdentityBlocks(num_hidden_layers=5))
    ours, theirs = small.state_dict(), growth.model.state_dict()
    one, zero = torch.ones(32), torch.zeros(32)
    for layer in (0, 2, 3):  # handed on
        assert torch.equal(theirs[LAST.format(layer, "weight")], one)
        assert torch.equal(theirs[LAST.format(layer, "bias")], zero)
    for giver, taker in ((0, 1), (1, 4)):
        for leaf in ("weight", "bias"):
            assert torch.equal(theirs[LAST.format(taker, leaf)], ours[LAST.format(giver, leaf)])
    for layer, source in ((0, 0), (2, 1)):  # blocks that were there keep the norm inside
        assert torch.equal(theirs[MIDDLE.format(layer, "weight")], ours[MIDDLE.format(source, "weight")])
    for layer in (1, 3, 4):
        assert torch.equal(theirs[MIDDLE.format(layer, "weight")], one)
        assert not theirs[f"bert.encoder.layer.{layer}.output.dense.weight"].any()
        assert not theirs[f"bert.encoder.layer.{layer}.attention.output.dense.bias"].any()
    assert growth.provenance.mask(LAST.format(1, "weight"), "old").all()  # it only moved
    assert growth.provenance.mask(LAST.format(0, "weight"), "fresh").all()


def test_a_large_eps_is_measured_and_not_promised():
    """BART's 1e-5 changes the stream by eps / 2v in each of four places; the gain sqrt(1 + eps) makes up for the rest."""
    small = pico.build("bart")
    growth = Growth.of(small, ms.IdentityBlocks(depth=2))
    assert not growth.plans[0].preserves_function
    assert 1e-7 < growth.certificate.relative_error < 1e-5
    obstacles = {row.axis: row.obstacle for row in rows(growth.plans[0], small)}
    assert "eps of 1e-05 changes it by about" in obstacles["encoder_layers"]
    ours, theirs = (m.model.encoder.layers for m in (small, growth.model))
    torch.testing.assert_close(
        theirs[1].final_layer_norm.weight, ours[0].final_layer_norm.weight * (1 + 1e-5) ** 0.5, rtol=2e-7, atol=0
    )


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-2])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, lambda n, eps: gemma_norm(n, eps)])
def test_eps_is_measured(norm, eps):
    assert norm_eps(norm(32, eps=eps)) == pytest.approx(eps, rel=1e-3, abs=1e-12)


def gemma_norm(size: int, eps: float) -> nn.Module:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    return GemmaRMSNorm(size, eps=eps)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    tokens = torch.arange(3, 35).view(2, 16)
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_mapped_gradients_are_the_true_gradients():
    """Those of the gain that moved too, which are what they were at its old place."""
    small = pico.build("bert").double()
    growth = Growth.of(small, ms.IdentityBlocks(num_hidden_layers=5))
    ours, theirs = gradients(small), gradients(growth.model)
    checked = []
    for name, plan in growth.plans[0].tensors.items():
        if name in theirs and not plan.begins:
            mapped = grow_tensor(plan, ours.__getitem__, "gradient")
            torch.testing.assert_close(mapped, theirs[name], rtol=1e-6, atol=1e-10, msg=name)
            checked.append(name)
    assert {LAST.format(1, "weight"), LAST.format(4, "bias"), LAST.format(0, "weight")} & set(checked) == {
        LAST.format(1, "weight"), LAST.format(4, "bias")
    }  # fmt: skip


@pytest.mark.parametrize("moved", [True, False])
def test_moments_move_with_the_gain(moved):
    """With what is fresh held, 12 steps of both networks are the same; with the moments where they were, they are not."""
    small = pico.build("bert").double()
    optimizer = torch.optim.AdamW(small.parameters(), lr=3e-3, weight_decay=0.1)
    steps(small, optimizer, range(12))
    growth = Growth.of(small, ms.IdentityBlocks(depth=2))
    for name, parameter in growth.model.named_parameters():
        parameter.requires_grad_(not growth.plans[0].tensors[growth.plans[0].own_names[name]].begins)
    grown = growth.grow_optimizer(optimizer)
    if not moved:
        taker = growth.model.get_parameter(LAST.format(1, "weight"))
        grown.state[taker] = {key: value * 0 if value.dim() else value for key, value in grown.state[taker].items()}
    ours, theirs = steps(small, optimizer, range(12, 24)), steps(growth.model, grown, range(12, 24))
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    assert difference < 1e-9 if moved else difference > 1e-5


def test_new_blocks_learn():
    """Nothing in a silent block is stuck: after a few steps its branches write, and its norms have moved."""
    growth = Growth.of(pico.build("bert"), ms.IdentityBlocks(depth=2))
    optimizer = torch.optim.AdamW(growth.model.parameters(), lr=1e-2)
    steps(growth.model, optimizer, range(3))
    state = growth.model.state_dict()
    assert state["bert.encoder.layer.1.output.dense.weight"].abs().min() > 0
    assert (state[MIDDLE.format(1, "weight")] - 1).abs().max() > 1e-3
    assert (state[LAST.format(0, "weight")] - 1).abs().max() > 1e-3


def test_a_norm_that_its_block_uses_twice_is_not_passed_on():
    """XMOD's adapters stand between two uses of the block's last norm, so its gain has to stay there."""
    config = transformers.XmodConfig(**ENCODER, languages=["en_XX", "de_DE"], default_language="en_XX", pad_token_id=0)
    small = transformers.XmodForMaskedLM(config).eval()
    pico.randomise(small)
    growth = Growth.of(small, ms.IdentityBlocks(depth=2))
    assert not growth.plans[0].preserves_function
    assert growth.certificate.relative_error > 1e-3
    (why,) = (row.obstacle for row in rows(growth.plans[0], small))
    assert "layer.0.output.LayerNorm ends its block (post-norm) and is also used before another step of it" in why


def test_without_adapters_between_the_same_norm_is_passed_on():
    config = transformers.XmodConfig(**ENCODER, languages=["en_XX"], default_language="en_XX", pad_token_id=0,
                                     adapter_reuse_layer_norm=False)  # fmt: skip
    small = transformers.XmodForMaskedLM(config).eval()
    pico.randomise(small)
    growth = Growth.of(small, ms.IdentityBlocks(depth=2))
    assert growth.plans[0].preserves_function
    assert growth.certificate.relative_error < 1e-9
