"""How a network is set up to be trained outlives its growth: what is frozen, what is computed anew, in which mode it is."""

from __future__ import annotations

import pico
import pytest
import torch

import meristem as ms
from meristem.checkpoints import open_streamed

METHODS = {
    "width": ms.HyperCloning(width=2, noise=0.0),
    "depth": ms.IdentityBlocks(depth=2),
    "both": [ms.HyperCloning(width=2, noise=0.0), ms.Stacking(depth=2)],
    "untied": ms.LEMON(hidden_size=48, num_attention_heads=6, num_key_value_heads=3),
}


def frozen(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_frozen_stays_frozen(method):
    small = pico.build("llama", tie_word_embeddings=method != "untied")
    small.model.embed_tokens.requires_grad_(False)
    small.model.layers[0].mlp.requires_grad_(False)
    big = ms.grow(small, METHODS[method])
    kept = frozen(big)
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} <= kept
    assert "model.layers.0.self_attn.q_proj.weight" not in kept
    of_layers = {name.split(".")[2] for name in kept if name.startswith("model.layers.")}
    if method == "both":  # 0 1 0 1: copies are frozen as what they are copies of
        assert of_layers == {"0", "2"}
    if method in ("width", "untied"):
        assert kept == frozen(small)
    assert big.model.embed_tokens.weight.requires_grad == big.lm_head.weight.requires_grad or method == "untied"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_gradient_checkpointing_stay(method, training):
    small = pico.build("llama").train(training)
    small.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    big = ms.grow(small, METHODS[method])
    assert big.training == training
    assert all(module.training == training for module in big.modules())
    assert big.is_gradient_checkpointing
    assert all(layer.gradient_checkpointing for layer in big.model.layers)
    big.train()
    ids = torch.randint(3, 67, (2, 9))
    big(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in big.parameters())
    assert not ms.grow(pico.build("llama"), METHODS[method]).is_gradient_checkpointing


def test_fusion_and_shrinking_keep_them_too():
    small = pico.build("llama")
    small.model.embed_tokens.requires_grad_(False)
    small.gradient_checkpointing_enable()
    for made in (
        ms.fuse([small, small], ms.DeepFusion()),
        ms.shrink(small, ms.WeightSelection(hidden_size=16)),
    ):
        assert "model.embed_tokens.weight" in frozen(made)
        assert "model.layers.0.mlp.up_proj.weight" not in frozen(made)
        assert made.is_gradient_checkpointing


def test_a_streamed_network_is_open_to_training_when_it_is_made(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    assert not frozen(ms.grow(open_streamed(str(tmp_path / "small")), METHODS["both"]))
