"""Networks that are not simply their class made of their config, and config entries that follow the layers or do not."""

from __future__ import annotations

import pico
import pytest
import torch
import transformers as T
from torch import nn

import meristem as ms
from meristem.anatomy.inputs import example_inputs, outputs_of
from meristem.errors import AnatomyError

BERT = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def test_hidden_states_of_a_network_without_a_head_are_the_mapped_ones():
    small = T.BertModel(T.BertConfig(**BERT)).eval()
    pico.randomise(small)
    big = ms.grow(small, ms.HyperCloning(width=2))
    inputs = example_inputs(small)
    torch.testing.assert_close(
        big(**inputs).last_hidden_state, small(**inputs).last_hidden_state.repeat(1, 1, 2), rtol=1e-4, atol=1e-4
    )
    certificate = ms.Growth.of(small, ms.HyperCloning(width=2)).certificate
    assert certificate.holds
    assert certificate.kl_divergence is None  # there is no distribution


def test_a_wrong_hidden_state_does_not_hold():
    small = T.BertModel(T.BertConfig(**BERT)).eval()
    pico.randomise(small)
    with pytest.raises(ms.MeristemError, match="last_hidden_state has shapes"):
        ms.verify(small, T.BertModel(T.BertConfig(**{**BERT, "hidden_size": 32})).eval())
    other = T.BertModel(T.BertConfig(**BERT)).eval()
    assert not ms.verify(small, other).holds


def test_an_encoder_without_its_pooler_is_grown_without_it():
    small = T.BertModel(T.BertConfig(**BERT), add_pooling_layer=False).eval()
    pico.randomise(small)
    big = ms.grow(small, ms.HyperCloning(width=2))
    assert big.pooler is None
    assert big.encoder.layer[0].output.dense.weight.shape == (32, 64)


def test_an_instance_that_is_not_its_class_says_what_differs():
    small = pico.build("llama")
    small.value_head = nn.Linear(32, 1)
    with pytest.raises(AnatomyError, match=r"LlamaForCausalLM\(config\) builds: it also has value_head\.weight"):
        ms.Anatomy.of(small)
    sliced = pico.build("llama")
    sliced.model.layers = sliced.model.layers[:1]
    with pytest.raises(AnatomyError, match=r"it lacks model\.layers\.1\..* and 6 more"):
        ms.Anatomy.of(sliced)


def test_a_list_that_is_as_long_as_the_depth_by_chance_stays():
    entries = {
        "num_hidden_layers": 3,
        "head_dim": 8,
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
    }
    small = pico.build("qwen3", eos_token_id=[2, 5, 7], sliding_window=8, use_sliding_window=True, **entries)
    deep = ms.grow(small, ms.IdentityBlocks(depth=2))
    assert deep.config.eos_token_id == [2, 5, 7]
    assert deep.config.layer_types == ["full_attention"] * 4 + ["sliding_attention"] * 2
    back = ms.shrink(deep, ms.WeightSelection(num_hidden_layers=3))
    assert back.config.eos_token_id == [2, 5, 7]


def test_what_a_backbone_takes_out_of_the_stream_is_taken_behind_the_same_layers():
    config = T.BeitConfig(**BERT, image_size=16, patch_size=8, out_features=["stage1", "stage2"])
    small = T.BeitBackbone(config).eval()
    pico.randomise(small)
    deep = ms.grow(small, ms.IdentityBlocks(depth=2))
    assert deep.config.out_features == ["stage2", "stage4"]
    images = {"pixel_values": torch.randn(2, 3, 16, 16)}
    ours, theirs = outputs_of(small, images), outputs_of(deep, images)
    assert list(ours) == ["feature_maps.0", "feature_maps.1"]
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name])


def test_the_depth_may_be_the_length_of_a_list():
    config = T.NemotronHConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        layers_block_type=["mamba", "moe", "attention"], mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=4, n_groups=2,
        chunk_size=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        moe_shared_expert_intermediate_size=8,
    )  # fmt: skip
    small = T.NemotronHForCausalLM(config).eval()
    pico.randomise(small)
    deep = ms.grow(small, ms.IdentityBlocks(depth=2))
    assert deep.config.layers_block_type == [kind for kind in config.layers_block_type for _ in range(2)]
    inputs = example_inputs(small)
    torch.testing.assert_close(deep(**inputs).logits, small(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_one_norm_for_each_head():
    config = T.StableLmConfig(**{**pico.LLAMA, "num_key_value_heads": 2}, qk_layernorm=True)
    small = T.StableLmForCausalLM(config).eval()
    pico.randomise(small)
    anatomy = ms.Anatomy.of(small)
    assert anatomy.unit_lists == {
        "model.layers.*.self_attn.q_layernorm.norms": "heads",
        "model.layers.*.self_attn.k_layernorm.norms": "kv_heads",
    }
    both = [ms.HyperCloning(width=2), ms.IdentityBlocks(depth=2)]
    big = ms.grow(small, both)
    norms = big.model.layers[2].self_attn.q_layernorm.norms
    assert len(norms) == 8
    assert torch.equal(norms[5].weight, small.model.layers[1].self_attn.q_layernorm.norms[1].weight)
    inputs = example_inputs(small)
    torch.testing.assert_close(big(**inputs).logits, small(**inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks, depths", [("encoder", (4, 3)), ("decoder", (2, 6)), ("decoder_layers", (2, 6))])
def test_encoder_or_decoder_alone(blocks, depths):
    small = pico.build("t5_gated")
    deep = ms.grow(small, ms.IdentityBlocks(depth=2, blocks=blocks))
    assert (len(deep.encoder.block), len(deep.decoder.block)) == depths
    assert (deep.config.num_layers, deep.config.num_decoder_layers) == depths


def test_blocks_that_there_are_not():
    with pytest.raises(ms.MeristemError, match="llama has no blocks 'decoder'; it has layers"):
        ms.grow(pico.build("llama"), ms.IdentityBlocks(depth=2, blocks="decoder"))


def test_computed_positions_that_the_class_can_hold_are_saved(tmp_path):
    config = T.MarianConfig(
        vocab_size=64, decoder_vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=0, scale_embedding=True,
    )  # fmt: skip
    small = T.MarianMTModel(config).eval()
    pico.randomise(small)
    ms.grow(small, ms.HyperCloning(width=2)).save_pretrained(tmp_path)
    again = T.MarianMTModel.from_pretrained(tmp_path).eval()
    inputs = example_inputs(small)
    torch.testing.assert_close(again(**inputs).logits, small(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_values_that_are_no_numbers_are_named():
    broken = pico.build("llama")
    broken.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ms.MeristemError, match=r"weights are not finite .*: 1 in model.norm.weight"):
        ms.grow(broken, ms.HyperCloning(width=2))


def test_networks_that_take_other_inputs_are_no_pair():
    with pytest.raises(
        ms.MeristemError, match=r"does not run on inputs of the first \(pixel_values \(2, 3, 16, 16\) float32\)"
    ):
        ms.verify(pico.build("vit"), pico.build("llama"))
