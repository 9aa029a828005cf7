"""Detection, segmentation and depth estimation: positions that only some readers see, tables with an entry for some layers,
numbers of layers in the config, widths that have to be equal."""

from __future__ import annotations

import architectures
import pytest
import torch
from support.auto_classes import auto_classes

import meristem as ms
from meristem.growth.settle import settle

TYPES = {entry.name: entry.model_type for entry in auto_classes()}


def tiny(name):
    return architectures.tiny_model(TYPES[name], name)


def grown(model, method, inputs):
    return ms.Growth.of(model, method, inputs=inputs)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_detr_reads_old_frequencies_only(noise):
    model, inputs = tiny("DetrForObjectDetection")
    growth = grown(model, ms.HyperCloning(width=2, noise=noise), inputs)
    assert growth.certificate.relative_error < (1e-6 if noise else 1e-12)  # noise is rounded to float32
    old, new = model.state_dict(), growth.model.state_dict()
    norm = "model.encoder.layers.0.self_attn_layer_norm.weight"
    pairs = torch.arange(64).view(32, 2).repeat(1, 2).flatten()  # 0 1 0 1 2 3 2 3 ...
    assert torch.equal(new[norm], old[norm][pairs])
    query = "model.encoder.layers.0.self_attn.q_proj.weight"
    columns = new[query][:64].view(64, 32, 2, 2)  # pair, copy, unit
    assert torch.equal(columns[:, :, 0].flatten(1), old[query])
    assert torch.equal(columns[:, :, 1], torch.zeros(64, 32, 2))
    value = "model.encoder.layers.0.self_attn.v_proj.weight"
    copies = new[value][:64].view(64, 32, 2, 2)
    assert torch.allclose(copies.sum(2).flatten(1), old[value], atol=1e-6)  # whole, where no position is seen
    assert torch.equal(copies[:, :, 0], copies[:, :, 1]) == (noise == 0)


def test_heads_of_several_layers_that_share_a_reader_are_no_tied_embedding():
    model, inputs = tiny("DeformableDetrForObjectDetection")
    growth = grown(model, ms.HyperCloning(width=2, noise=0.0), inputs)
    assert growth.certificate.relative_error < 1e-12
    norm = "model.decoder.layers.2.final_layer_norm.weight"
    old, new = model.state_dict()[norm], growth.model.state_dict()[norm]
    assert torch.equal(new, old[torch.arange(64).view(32, 2).repeat(1, 2).flatten()])  # and not half of it
    assert growth.model.class_embed[0].weight is growth.model.class_embed[2].weight


def test_yolos_adds_its_positions_behind_the_layers_that_had_them():
    model, inputs = tiny("YolosModel")
    name = "encoder.interpolation.mid_position_embeddings"
    first, second = model.state_dict()[name]  # behind layers 0 and 1 of three
    growth = grown(model, ms.IdentityBlocks(depth=2), inputs)
    assert growth.certificate.relative_error == 0
    nothing = torch.zeros_like(first)
    assert torch.equal(growth.model.state_dict()[name], torch.stack([first, nothing, second, nothing, nothing]))
    stacked = grown(model, ms.Stacking(depth=2), inputs)  # 0 1 2 0 1 2
    assert torch.equal(stacked.model.state_dict()[name], torch.stack([first, second, nothing, first, second]))


def test_eomt_keeps_the_last_blocks_that_see_queries():
    model, inputs = tiny("EomtForUniversalSegmentation")
    model.attn_mask_probs = torch.nn.Buffer(torch.tensor([1.0, 2.0]))
    growth = grown(model, ms.IdentityBlocks(depth=2), inputs)
    assert growth.certificate.relative_error == 0
    assert (model.config.num_blocks, growth.model.config.num_blocks) == (2, 4)
    assert growth.model.attn_mask_probs.tolist() == [1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "indices"), [("BeitForSemanticSegmentation", [1, 3, 5, 7]), ("BeitBackbone", [2, 4, 6, 8])]
)
def test_outputs_are_numbered_as_the_class_does(name, indices):
    model, inputs = tiny(name)
    assert list(model.config.out_indices) == [1, 2, 3, 4]  # behind 0 to 3 layers for the one, 1 to 4 for the other
    growth = grown(model, ms.IdentityBlocks(depth=2), inputs)
    assert growth.certificate.relative_error < 1e-12
    assert list(growth.model.config.out_indices) == indices


def test_joined_parts_widen_by_fields_of_their_own():
    model, inputs = tiny("Pix2StructForConditionalGeneration")
    growth = grown(model, ms.HyperCloning(width=2, noise=0.0), inputs)
    assert growth.certificate.holds
    text, vision = growth.model.config.text_config, growth.model.config.vision_config
    assert (text.hidden_size, text.num_heads, vision.hidden_size, vision.num_attention_heads) == (128, 8, 128, 8)


def test_a_width_named_after_a_sibling_stays_with_it():
    model, _ = tiny("Nemotron3_5TranscribeForConditionalGeneration")
    builder = ms.Anatomy.of(model).builder
    config = builder.config_for({**builder.sizes, "hidden": 128}, builder.depths)
    diarization = config.audio_config.diarization_config
    assert config.text_config.hidden_size == 128
    assert diarization.head_config.audio_hidden_size == diarization.audio_config.hidden_size == 64


def test_a_projection_that_equal_widths_do_without():
    model, inputs = tiny("GLPNForDepthEstimation")
    assert list(model.config.hidden_sizes) == [32, 64, 160, 256]
    assert isinstance(model.decoder.stages[2].convolution, torch.nn.Identity)  # 64 are 64
    growth = grown(model, ms.HyperCloning(width=2, noise=0.0), inputs)
    assert growth.certificate.relative_error < 1e-12
    assert (list(growth.model.config.hidden_sizes), growth.model.config.decoder_hidden_size) == (
        [64, 128, 320, 512],
        128,
    )
    assert isinstance(growth.model.decoder.stages[2].convolution, torch.nn.Identity)


def test_a_factor_is_not_put_where_it_happens_to_hide_a_later_call():
    model, inputs = tiny("VideomtForUniversalSegmentation")
    settled, parting = settle(ms.Anatomy.of(model), model, inputs)
    assert parting is None
    assert {m.tensor for m in settled.override.multipliers} == {r"mask_head\.fc3\.weight", r"mask_head\.fc3\.bias"}


@pytest.mark.parametrize("name", ["RfDetrModel", "Llama4VisionModel", "ConditionalDetrModel", "MiniMaxM3VLModel"])
def test_width_is_exact(name):
    model, inputs = tiny(name)
    growth = grown(model, ms.HyperCloning(width=2, noise=0.0), inputs)
    assert growth.certificate.relative_error < 1e-5
    assert growth.anatomy.sizes["hidden"] == 128


@pytest.mark.parametrize("name", ["UperNetForSemanticSegmentation", "RfDetrForInstanceSegmentation"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_masks_are_kept(name, noise):
    """UPerNet reads four stages of a backbone through pyramids and fuses them; RF-DETR multiplies queries with pixels."""
    model, inputs = tiny(name)
    growth = grown(model, ms.HyperCloning(width=2, noise=noise), inputs)
    assert growth.certificate.relative_error < (1e-5 if noise else 1e-12)
    with torch.no_grad():
        before, after = model(**inputs), growth.model(**inputs)
    masks = "logits" if name.startswith("Uper") else "pred_masks"
    assert before[masks].shape == after[masks].shape
    assert float(before[masks].std()) > 1e-3
    torch.testing.assert_close(after[masks], before[masks], atol=1e-3 * float(before[masks].abs().max()), rtol=0)
