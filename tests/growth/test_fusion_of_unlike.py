"""Fusing networks that are not quite alike: both heads count, and what computes differently is refused by name."""

from __future__ import annotations

import pico
import pytest
import torch

import meristem as ms
from meristem.anatomy import Anatomy
from meristem.growth.fuse import fuse_with_certificate
from meristem.growth.structure.differences import differences


def logits(model, seed=0):
    inputs = ms.anatomy.inputs.example_inputs(model, seed=seed)
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("order", ["tied first", "untied first"])
@pytest.mark.parametrize("family", ["llama", "gemma", "qwen2", "bert"])
def test_a_tied_and_an_untied_head_both_count(family, order):
    """With grouped norms the fused network is exactly the mean of its parents, heads included."""
    pair = [pico.build(family, 0, tie_word_embeddings=True), pico.build(family, 1, tie_word_embeddings=False)]
    pair = pair if order == "tied first" else pair[::-1]
    fusion = fuse_with_certificate(pair, ms.DeepFusion(norm="grouped", weights=[0.7, 0.3]))
    assert fusion.exact
    assert not fusion.model.config.tie_word_embeddings
    head, embedding = fusion.model.get_output_embeddings(), fusion.model.get_input_embeddings()
    assert head.weight is not embedding.weight
    torch.testing.assert_close(
        logits(fusion.model), 0.7 * logits(pair[0]) + 0.3 * logits(pair[1]), atol=2e-5, rtol=1e-4
    )


ROPE = {"rope_type": "default", "rope_theta": 5e5}
DIFFERENT = [
    ("llama", {"rope_theta": 5e5}, "rope_parameters.rope_theta: 10000.0 and 500000.0"),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 2.0}}, "rope_parameters.factor: None and 2.0"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act: 'silu' and 'gelu'"),
    ("llama", {"rms_norm_eps": 1e-3}, "rms_norm_eps: 1e-06 and 0.001"),
    ("llama", {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_act": "gelu"}, "hidden_act"),
    ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar: 8 and 16"),
    ("gemma2", {"final_logit_softcapping": 5.0}, "final_logit_softcapping"),
    ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping: 50.0 and None"),
    ("gemma2", {"sliding_window": 8}, "sliding_window: 4096 and 8"),
    ("gemma2", {"layer_types": ["full_attention"] * 2}, "layer_types"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: False and True"),
    ("bert", {"layer_norm_eps": 1e-5}, "layer_norm_eps"),
    ("bart", {"scale_embedding": False}, "scale_embedding: True and False"),
    ("roberta", {"pad_token_id": 3}, "pad_token_id: 0 and 3"),
]  # fmt: skip


@pytest.mark.parametrize("family, changes, words", DIFFERENT)
def test_what_computes_differently_is_named(family, changes, words):
    pair = [pico.build(family), pico.build(family, 1, **changes)]
    with pytest.raises(
        ms.MeristemError, match=r"networks 1 and 2 compute differently \(.*allow_differences=True"
    ) as raised:
        ms.fuse(pair)
    assert words in str(raised.value)


def test_tensors_that_one_network_lacks_are_named():
    plain, biased = pico.build("llama"), pico.build("llama", 1, attention_bias=True)
    lacks = r"network 2 has tensors that network 1 lacks: model\.layers\.0\.self_attn\.k_proj\.bias, .*; both must have the same"
    with pytest.raises(ms.MeristemError, match=lacks):
        ms.fuse([plain, biased])


INERT = [
    ("llama", {"attention_dropout": 0.5, "initializer_range": 0.1, "use_cache": False, "bos_token_id": 7}),
    ("llama", {"hidden_size": 48, "intermediate_size": 60, "num_attention_heads": 6, "num_key_value_heads": 2}),
    ("gpt2", {"attn_pdrop": 0.3, "summary_first_dropout": 0.2, "n_embd": 48, "n_head": 6}),
    ("bart", {"dropout": 0.3, "encoder_layerdrop": 0.1, "d_model": 48, "encoder_attention_heads": 6, "decoder_attention_heads": 12}),
    ("vit", {"hidden_dropout_prob": 0.2, "id2label": {str(i): f"thing {i}" for i in range(5)}}),
    ("mixtral", {"router_aux_loss_coef": 0.5, "output_router_logits": False}),
]  # fmt: skip


@pytest.mark.parametrize("family, changes", INERT)
def test_what_does_not_compute_is_no_difference(family, changes):
    assert not differences(*(Anatomy.of(m) for m in (pico.build(family), pico.build(family, 1, **changes))))


def test_differences_can_be_allowed():
    """Both run with the first one's rotary base; the certificate shows how far that is from the mean."""
    one, two = pico.build("llama"), pico.build("llama", rope_theta=1e2)
    fusion = fuse_with_certificate([one, two], ms.DeepFusion(norm="grouped", allow_differences=True))
    assert not fusion.exact
    assert not fusion.certificate.holds
    assert fusion.certificate.relative_error > 1e-3
    assert fusion.model.config.rope_parameters["rope_theta"] == 1e4
    assert fusion.methods[0]["allow_differences"]
    torch.testing.assert_close(logits(fusion.model), logits(one), atol=2e-5, rtol=1e-4)  # the weights are the same


@pytest.mark.parametrize(
    "models, words", [(lambda a: a, r"ms.fuse\(\[a, b\]\)"), (lambda a: [a, a], "DeepFusion or a Rebasin")]
)
def test_networks_that_are_no_list(models, words):
    """`ms.fuse(a, b)`, and a third network where a method belongs."""
    own = pico.build("llama")
    with pytest.raises(ms.MeristemError, match=words):
        ms.fuse(models(own), own)
