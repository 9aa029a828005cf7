"""Example inputs, by each class's own signature and config, and what comes out on them."""

from __future__ import annotations

import pico
import pytest
import torch
import transformers as T

import meristem as ms
from meristem.anatomy.inputs import example_inputs, outputs_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 8, "num_channels": 3}
TEXT = {**SMALL, "vocab_size": 64, "max_position_embeddings": 64}


def clip() -> T.CLIPModel:
    text = {**TEXT, "eos_token_id": 2}
    return T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=8)).eval()


def whisper() -> T.WhisperForConditionalGeneration:
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2)
    config = T.WhisperConfig(
        vocab_size=64, num_mel_bins=8, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=10,
        max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **sizes,
    )  # fmt: skip
    return T.WhisperForConditionalGeneration(config).eval()


def qwen2_vl() -> T.Qwen2VLForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = T.Qwen2VLConfig(
        text_config={**TEXT, "num_key_value_heads": 1, "rope_parameters": rope}, image_token_id=63, video_token_id=62,
        vision_config=vision, vision_start_token_id=61, vision_end_token_id=60,
    )  # fmt: skip
    return T.Qwen2VLForConditionalGeneration(config).eval()


def test_a_vocabulary_of_three_symbols():
    config = T.GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=2, n_positions=11)
    ids = example_inputs(T.GPT2LMHeadModel(config))["input_ids"]
    assert ids.shape == (2, 7)  # as long as the positions allow
    assert set(ids.flatten().tolist()) <= {0, 1, 2}


def test_ids_that_mean_something_do_not_occur_by_chance():
    config = T.LlamaConfig(**TEXT, pad_token_id=7, bos_token_id=8, eos_token_id=9)
    ids = example_inputs(T.LlamaForCausalLM(config), batch_size=8)["input_ids"]
    assert not {7, 8} & set(ids.flatten().tolist())
    assert ids[:, -1].tolist() == [9] * 8  # a text ends with its end
    assert 9 not in ids[:, :-1]


def test_a_classifier_without_padding_takes_one_text():
    config = T.LlamaConfig(**TEXT, num_labels=3, pad_token_id=None)
    assert len(example_inputs(T.LlamaForSequenceClassification(config))["input_ids"]) == 1
    config.pad_token_id = 0
    assert len(example_inputs(T.LlamaForSequenceClassification(config))["input_ids"]) == 2


def test_two_encoders_get_a_text_and_an_image():
    inputs = example_inputs(clip())
    assert {n: tuple(t.shape) for n, t in inputs.items() if n != "attention_mask"} == {
        "input_ids": (2, 24),
        "pixel_values": (2, 3, 16, 16),
    }
    outputs = outputs_of(clip(), inputs)
    assert outputs["logits_per_image"].shape == (2, 2)
    assert outputs["vision_model_output.last_hidden_state"].shape == (2, 5, 16)


def test_speech_to_text_gets_features_and_the_texts_beginning():
    inputs = example_inputs(whisper())
    assert inputs["input_features"].shape == (2, 8, 20)
    assert inputs["decoder_input_ids"].shape[0] == 2


def test_a_composite_gets_as_many_placeholders_as_its_tower_makes_features():
    model = qwen2_vl()
    inputs = example_inputs(model)
    assert inputs["pixel_values"].shape == (32, 96)  # two images of 4 x 4 patches, four of which are merged
    assert (inputs["input_ids"] == 63).sum(1).tolist() == [4, 4]
    assert (inputs["input_ids"] == 62).sum(1).tolist() == [4, 4]
    assert torch.equal(
        inputs["mm_token_type_ids"], (inputs["input_ids"] == 63).long() + 2 * (inputs["input_ids"] == 62)
    )


def test_a_composite_is_widened_with_what_joins_its_streams():
    small = qwen2_vl()
    pico.randomise(small)
    big = ms.grow(small, ms.HyperCloning(width=2))
    inputs = example_inputs(small, seed=5)
    assert big.config.vision_config.hidden_size == 32
    assert big.config.vision_config.embed_dim == 16
    torch.testing.assert_close(big(**inputs).logits, small(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_the_space_that_both_encoders_are_projected_into_stays():
    small = clip()
    small.config.text_config.projection_dim = small.config.vision_config.projection_dim = 16
    small.config.projection_dim = 16  # as wide as the text by chance
    small = T.CLIPModel(small.config).eval()
    big = ms.grow(small, ms.HyperCloning(width=2))
    assert big.text_projection.weight.shape == (16, 32)


def test_depth_uses_the_inputs_that_the_user_gave(monkeypatch):
    small, inputs = clip(), example_inputs(clip())
    monkeypatch.setattr("meristem.anatomy.trace.example_inputs", None)  # nothing is guessed
    monkeypatch.setattr("meristem.anatomy.inputs.example_inputs", None)
    big = ms.grow(small, ms.IdentityBlocks(depth=2), inputs=inputs)
    torch.testing.assert_close(big(**inputs).logits_per_image, small(**inputs).logits_per_image)


def test_what_layers_put_out_one_by_one_is_no_output():
    model = pico.build("llama")
    model.config.output_hidden_states = True
    assert list(outputs_of(model, example_inputs(model))) == ["logits"]


def test_a_network_whose_inputs_cannot_be_guessed_says_what_it_takes():
    class Strange(T.LlamaForCausalLM):
        def forward(self, riddle):
            raise RuntimeError("no answer")

    with pytest.raises(ms.MeristemError, match=r"forward takes riddle \(required\).*pass inputs="):
        example_inputs(Strange(T.LlamaConfig(**TEXT)))
