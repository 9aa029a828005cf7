"""Layers that leave keys, values or choices of positions for later ones: their silent copies stand in front of them."""

from __future__ import annotations

import pico
import pytest
import torch
import transformers

import meristem as ms
from meristem.anatomy.layer_lists import follow_layers, read_later
from meristem.growth import Growth
from meristem.growth.plans.layers import layer_order

SIZES = {"vocab_size": 67, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64, "num_hidden_layers": 6,
         "intermediate_size": 44, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LATENT = {**SIZES, "moe_intermediate_size": 20, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
          "kv_lora_rank": 12, "q_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
          "index_n_heads": 2, "index_head_dim": 16, "index_topk": 5,
          "indexer_types": ["full", "shared", "full", "shared", "shared", "full"]}  # fmt: skip
SHARED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8,
          "vocab_size_per_layer_input": 67, "global_head_dim": 8, "sliding_window": 4,
          "layer_types": ["sliding_attention", "full_attention"] * 3}  # fmt: skip


def mistral() -> torch.nn.Module:
    owners = {"kv_source_layers": [0, 1, 2, 1, 0, 5], "no_rope_layers": [1, 0, 1, 0, 1, 1]}
    config = transformers.MistralLarge4TextConfig(**LATENT, **owners)
    return transformers.MistralLarge4TextModel(config)


NETWORKS = {
    "mistral_large4": mistral,
    "glm_moe_dsa": lambda: transformers.GlmMoeDsaForCausalLM(transformers.GlmMoeDsaConfig(**LATENT)),
    "gemma4": lambda: transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**SHARED)),
}
OWNERS = {"mistral_large4": {0, 1, 2}, "glm_moe_dsa": {0, 2}, "gemma4": {2, 3}}


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    pico.randomise(model)
    return model


@pytest.mark.parametrize(
    "method", [ms.IdentityBlocks(depth=2), ms.IdentityBlocks(num_hidden_layers=8)], ids=["12", "8"]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_later_layers_read_what_they_read_before(name, method, tmp_path):
    small = network(name)
    tokens = {"input_ids": torch.arange(3, 51).view(2, 24)}
    growth = Growth.of(small, method, inputs=tokens)
    assert growth.plans[0].preserves_function
    assert growth.certificate.relative_error < 1e-12
    growth.model.save_pretrained(tmp_path)
    with torch.no_grad():
        ours, theirs = small(**tokens)[0], type(small).from_pretrained(tmp_path)(**tokens)[0]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=float(ours.abs().max()) * 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_silent_copies_of_those_stand_in_front(name):
    growth = Growth.of(network(name), ms.IdentityBlocks(depth=2), inputs={"input_ids": torch.arange(3, 51).view(2, 24)})
    layers = growth.plans[0].layers["layers"]
    assert layer_order(layers) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert {layer for layer in range(6) if layers[2 * layer].silent} == OWNERS[name]


def test_numbers_of_owners_follow_them():
    config = mistral().config
    follow_layers(config, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], 6)
    assert config.kv_source_layers == [0, 1, 2, 3, 4, 5, 3, 3, 1, 1, 10, 11]
    config = mistral().config
    follow_layers(config, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], 6)  # each copy of the whole keeps to itself
    assert config.kv_source_layers == [0, 1, 2, 1, 0, 5, 6, 7, 8, 7, 6, 11]


def test_the_count_of_layers_without_keys_of_their_own_follows():
    growth = Growth.of(network("gemma4"), ms.IdentityBlocks(num_hidden_layers=9))
    copies = layer_order(growth.plans[0].layers["layers"])
    assert growth.model.config.num_kv_shared_layers == sum(layer >= 4 for layer in copies) == 3


def test_layers_that_leave_nothing():
    assert read_later(transformers.LlamaConfig(num_hidden_layers=3), 3) == frozenset()


def test_it_holds_beyond_the_length_of_the_proof():
    """On 24 tokens an indexer that chooses 30 leaves nothing out, so the proof alone would not show whose choice a layer reads."""
    config = transformers.GlmMoeDsaConfig(**{**LATENT, "index_topk": 30})
    torch.manual_seed(0)
    small = transformers.GlmMoeDsaForCausalLM(config).eval()
    pico.randomise(small)
    big = ms.grow(small, ms.IdentityBlocks(depth=2))
    longer = torch.randint(3, 67, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = small(input_ids=longer).logits, big(input_ids=longer).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=float(ours.abs().max()) * 1e-5)
