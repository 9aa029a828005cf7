"""Layers of several kinds: a target's pattern is met, list of blocks by list of blocks, and kinds travel with their layers."""

from __future__ import annotations

import pico
import pytest
import torch
import transformers

import meristem as ms
from meristem.growth import Growth
from meristem.growth.like.config import like, rows
from meristem.growth.plans.typed_layers import placed_by_type

FULL, SLIDING, MAMBA = "full_attention", "sliding_attention", "mamba"
SHARED = {**pico.LLAMA, **pico.TOKENS}
GEMMA = {**SHARED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
GRANITE = {**SHARED, "num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 44, "mamba_n_heads": 4,
           "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2}  # fmt: skip


def made(model: torch.nn.Module) -> torch.nn.Module:
    pico.randomise(model)
    return model.eval()


def gemma3(**changes) -> transformers.Gemma3TextConfig:
    return transformers.Gemma3TextConfig(**{**GEMMA, **changes})


def granite(types: list[str]) -> transformers.GraniteMoeHybridConfig:
    return transformers.GraniteMoeHybridConfig(**{**GRANITE, "num_hidden_layers": len(types), "layer_types": types})


def t5gemma(encoder: list[str], decoder: list[str]) -> transformers.T5GemmaConfig:
    parts = {
        name: transformers.T5GemmaModuleConfig(**{**GEMMA, "num_hidden_layers": len(types), "layer_types": types})
        for name, types in (("encoder", encoder), ("decoder", decoder))
    }
    return transformers.T5GemmaConfig(**parts, vocab_size=67)


def lfm2(types: list[str]) -> transformers.Lfm2Config:
    return transformers.Lfm2Config(**{**SHARED, "num_hidden_layers": len(types), "layer_types": types})


PAIRS = {
    "Gemma 3, every sixth layer sees all": (transformers.Gemma3ForCausalLM, gemma3(num_hidden_layers=8), gemma3(num_hidden_layers=13)),
    "Granite hybrid": (transformers.GraniteMoeHybridForCausalLM, granite([MAMBA, "attention"] * 2),
                       granite([MAMBA, MAMBA, "attention"] * 2 + [MAMBA])),
    "LFM2": (transformers.Lfm2ForCausalLM, lfm2(["conv", FULL] * 2), lfm2(["conv", "conv", FULL] * 2)),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_the_targets_pattern_is_met_and_the_function_kept(pair):
    kind, config, target = PAIRS[pair]
    small = made(kind(config))
    found = like(small, target)
    assert not found.fields  # the result's config is the target's
    growth = Growth.of(small, like=target)
    assert growth.plans[0].preserves_function
    assert growth.certificate.relative_error < 1e-6
    assert growth.model.config.layer_types == target.layer_types
    (row,) = rows(growth.plans[0], small)
    assert row.rule == "identity blocks, where the target's kinds of layers need them"


def test_encoder_and_decoder_have_patterns_of_their_own():
    small = made(
        transformers.T5GemmaForConditionalGeneration(t5gemma([SLIDING, FULL] * 2, [FULL, SLIDING, SLIDING, FULL]))
    )
    assert ms.Anatomy.of(small).depths == {"encoder_layers": 4, "decoder_layers": 4}
    target = t5gemma([SLIDING, FULL] * 3, [FULL, SLIDING, FULL, SLIDING, FULL])
    growth = Growth.of(small, like=target)
    assert growth.model.config.encoder.layer_types == [SLIDING, FULL] * 3
    assert growth.model.config.decoder.layer_types == [FULL, SLIDING, FULL, SLIDING, FULL]
    assert growth.certificate.relative_error < 1e-6
    big = ms.grow(small, ms.Stacking(encoder_layers="0,1,1,2,3", decoder_layers="0-2,1-3"))
    assert big.config.encoder.layer_types == [SLIDING, FULL, FULL, SLIDING, FULL]
    assert big.config.decoder.layer_types == [FULL, SLIDING, SLIDING, SLIDING, SLIDING, FULL]
    old, new = small.model.decoder.layers, big.model.decoder.layers
    for layer, source in enumerate([0, 1, 2, 1, 2, 3]):
        assert torch.equal(new[layer].mlp.up_proj.weight, old[source].mlp.up_proj.weight)
    assert torch.equal(big.model.encoder.layers[2].mlp.up_proj.weight, small.model.encoder.layers[1].mlp.up_proj.weight)


def test_old_layers_stand_at_places_of_their_kind():
    layers = placed_by_type("ab", "aabb")
    assert [(layer.sources[0][0], layer.silent) for layer in layers] == [(0, False), (0, True), (1, False), (1, True)]
    layers = placed_by_type("ab", "baab")
    assert [(layer.sources[0][0], layer.silent) for layer in layers] == [(1, True), (0, False), (0, True), (1, False)]
    assert placed_by_type("ab", "ba") is None  # not in their order
    assert placed_by_type("aa", "aca") is None  # of a kind that there is not


def test_what_cannot_stand_in_order_is_refused():
    small = made(transformers.GraniteMoeHybridForCausalLM(granite([MAMBA, "attention"] * 2)))
    with pytest.raises(ms.MeristemError, match=r"no growth of this network has the target's tensors.*layer_types"):
        ms.grow(small, like=granite(["attention", MAMBA, MAMBA, MAMBA, MAMBA, "attention"]))
    with pytest.raises(ms.MeristemError, match="the 8 layers do not fit in their order among 9 of the kinds asked for"):
        ms.grow(made(transformers.Gemma3ForCausalLM(gemma3(num_hidden_layers=8))),
                ms.LEMON(num_hidden_layers=9, layer_types={"layers": [FULL] * 9}))  # fmt: skip
    with pytest.raises(ms.MeristemError, match="llama has no layer types for its layers; leave out layer_types"):
        ms.grow(pico.build("llama"), ms.LEMON(num_hidden_layers=3, layer_types={"layers": [FULL] * 3}))


def test_both_lists_of_t5gemma_are_promised():
    """Its decoder hands the cache on by place: a second run of a block must not read what the first has left there."""
    small = made(transformers.T5GemmaForConditionalGeneration(t5gemma([FULL] * 2, [FULL] * 2)))
    growth = Growth.of(small, like=t5gemma([FULL] * 3, [FULL] * 4))
    assert growth.plans[0].preserves_function
    assert growth.certificate.relative_error == 0.0
