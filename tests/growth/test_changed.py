"""What an instance has that its class does not make of its config is named, and not taken for an anatomy that is not understood."""

from __future__ import annotations

import pico
import pytest
import torch
from torch import nn

import meristem as ms
from meristem.growth import Growth
from meristem.growth.structure.changed import changed_since


def other_scaling(model):
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.1


def other_table(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


def config_edited_afterwards(model):
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 77.0}


def head_untied_by_hand(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 1)


CHANGES = {
    other_scaling: "model.layers.0.self_attn.scaling is 0.1 and not 0.35",
    other_table: "model.rotary_emb.inv_freq holds other numbers than its config gives",
    config_edited_afterwards: "model.rotary_emb.inv_freq holds other numbers than its config gives",
    head_untied_by_hand: "model.embed_tokens.weight and lm_head.weight are two tensors, and the config says otherwise",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_named(change):
    model = pico.build("llama", tie_word_embeddings=change is head_untied_by_hand)
    change(model)
    with pytest.raises(ms.PreservationError, match="differs from what its class builds from its config") as told:
        ms.grow(model, ms.HyperCloning(width=2, noise=0.0))
    assert CHANGES[change] in str(told.value)
    assert "not understood" not in str(told.value)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "vit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_said_of_what_its_class_made(family, dtype):
    assert changed_since(pico.build(family).to(dtype)) is None


def test_a_hook_is_named_where_nothing_is_promised():
    model = pico.build("llama")
    model.model.layers[0].register_forward_hook(lambda *call: call[2] + 1.0)
    with pytest.warns(UserWarning, match="model.layers.0 has a hook"):
        Growth.of(model, ms.IdentityBlocks(depth=2))


@pytest.mark.parametrize("method", ["hypercloning", ms.HyperCloning, [ms.HyperCloning(width=2), "stacking"], 2])
def test_what_is_no_method(method):
    with pytest.raises(ms.MeristemError, match=r"a growth method is an object such as ms.HyperCloning\(width=2\)"):
        ms.grow(pico.build("llama"), method)


def test_packed_weights():
    model = torch.ao.quantization.quantize_dynamic(pico.build("llama"), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ms.MeristemError, match=r"packed .*quantisation.*before it is quantised"):
        ms.grow(model, ms.HyperCloning(width=2))


def test_a_width_that_stays_is_no_obstacle():
    """RT-DETR's encoder computes sinusoids of a width of its own, which is that of the decoder here only by chance."""
    import transformers

    resnet = transformers.ResNetConfig(
        hidden_sizes=[8, 16, 32, 32], embedding_size=8, depths=[1, 1, 1, 1], out_indices=[2, 3, 4]
    )
    config = transformers.RTDetrConfig(
        backbone_config=resnet, encoder_in_channels=[16, 32, 32], decoder_in_channels=[32] * 3, encoder_hidden_dim=32, d_model=32,
        encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4, decoder_layers=2, num_queries=6,
        num_denoising=0, use_timm_backbone=False, backbone=None,
    )  # fmt: skip
    small = transformers.RTDetrForObjectDetection(config).eval()
    pico.randomise(small)
    growth = Growth.of(small, ms.HyperCloning(width=2, noise=0.0), inputs={"pixel_values": torch.randn(1, 3, 64, 64)})
    assert growth.plans[0].preserves_function
    assert growth.certificate.relative_error < 1e-6


def one_activation(model):
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def shared_layer(model):
    model.model.layers[1] = model.model.layers[0]


CUT = {
    **CHANGES,
    one_activation: "model.layers.1.mlp.act_fn is a ReLU and not a SiLU",
    shared_layer: "are one tensor, and the config says otherwise",
}


@pytest.mark.parametrize("change", CUT)
@pytest.mark.parametrize("method", [ms.WeightSelection(intermediate_size=24), ms.Stacking(depth=2)])
def test_what_differs_is_named_where_nothing_is_promised(change, method):
    """What is cut out of it, or piled up, computes as its class does."""
    model = pico.build("llama", tie_word_embeddings=change is head_untied_by_hand)
    change(model)
    verb = ms.shrink if method.shrinks else ms.grow
    with pytest.warns(UserWarning, match="only that can grow or be cut") as told:
        verb(model, method)
    assert any(CUT[change] in str(said.message) for said in told)


def test_hooks_that_move_weights_are_none_of_the_network(recwarn):
    from accelerate import dispatch_model

    model = dispatch_model(pico.build("llama"), {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert "forward" in vars(model)
    assert changed_since(model) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_cut_out_of_weights_that_are_not_finite(value):
    model = pico.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = value
    words = r"not finite \(NaN or infinite: 1 in model\.layers\.1\.mlp\.up_proj\.weight\), and a network cut out"
    with pytest.raises(ms.MeristemError, match=words):
        ms.shrink(model, ms.WeightSelection(intermediate_size=24))


@pytest.mark.parametrize("change", [change for change in CUT if change is not config_edited_afterwards])
def test_a_fusion_names_the_network_that_differs(change):
    tied = change is head_untied_by_hand
    first, second = (pico.build("llama", seed, tie_word_embeddings=tied) for seed in (0, 1))
    change(second)
    with pytest.raises(
        ms.PreservationError, match=r"network 2 differs from what its class builds.*only that can be fused"
    ) as told:
        ms.fuse([first, second])
    assert CUT[change] in str(told.value)
    ms.fuse([first, second], ms.DeepFusion(allow_differences=True))


def test_one_network_that_differs_is_not_fused_with_itself():
    model = pico.build("llama")
    one_activation(model)
    for method in (ms.DeepFusion(noise=0.0), ms.DeepFusion(experts=True)):
        with pytest.raises(ms.PreservationError, match="network 1 differs") as told:
            ms.fuse([model, model], method)
        assert "anatomy" not in str(told.value)
