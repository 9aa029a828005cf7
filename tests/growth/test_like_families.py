"""Growth to a target of families whose norms, heads or layers are unlike Llama's: what is promised is exact after a reload."""

from __future__ import annotations

import pico
import pytest
import torch
import transformers

import meristem as ms
from meristem.anatomy.inputs import example_inputs, outputs_of
from meristem.growth import Growth
from meristem.growth.like.config import like, rows
from meristem.growth.proofs.expected import expected_outputs

PLAIN = {**pico.SMALL, **pico.TOKENS, "intermediate_size": 48, "max_position_embeddings": 64}
LLAMA = {**PLAIN, "num_key_value_heads": 2}
WIDER = {"hidden_size": 48, "num_attention_heads": 6}
OPT = {**pico.SMALL, **pico.TOKENS, "ffn_dim": 48, "max_position_embeddings": 40, "word_embed_proj_dim": 32,
       "layer_norm_elementwise_affine": False}  # fmt: skip
T5 = {"vocab_size": 67, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0}  # fmt: skip
IMAGES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
          "patch_size": 4}  # fmt: skip
NEO = {"vocab_size": 67, **pico.TOKENS, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4,
       "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}  # fmt: skip
GPT2 = {"vocab_size": 67, **pico.TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MODERN = {**PLAIN, "num_hidden_layers": 4, "cls_token_id": 1, "sep_token_id": 2}
MAMBA = {
    "vocab_size": 67,
    **pico.TOKENS,
    "hidden_size": 32,
    "state_size": 4,
    "num_hidden_layers": 2,
    "time_step_rank": 2,
}
WIDER_KV = {**WIDER, "num_key_value_heads": 3}

# class, config class, the network's config, what the target changes
EXACT = {
    "OLMo 1: norms without gains": ("OlmoForCausalLM", "OlmoConfig", LLAMA, WIDER_KV),
    "OPT without affine norms": ("OPTForCausalLM", "OPTConfig", OPT, {**WIDER, "word_embed_proj_dim": 48}),
    "NanoChat: norms without weights": ("NanoChatForCausalLM", "NanoChatConfig", LLAMA, WIDER_KV),
    "UMT5 scales its head": ("UMT5ForConditionalGeneration", "UMT5Config", T5, {"d_model": 52}),
    "LongT5 scales its head": ("LongT5ForConditionalGeneration", "LongT5Config", T5, {"d_model": 52}),
    "DINOv3: rows, then columns": ("DINOv3ViTModel", "DINOv3ViTConfig", IMAGES, {"hidden_size": 64}),
    "ViT with a pooler": ("ViTModel", "ViTConfig", IMAGES, WIDER),
    "YOLOS with a pooler": ("YolosModel", "YolosConfig", {**IMAGES, "image_size": [16, 16], "num_detection_tokens": 3}, WIDER),
    "AIMv2: a query of its own": ("Aimv2VisionModel", "Aimv2VisionConfig", IMAGES, {"hidden_size": 64}),
    "BLIP's projection": ("BlipVisionModel", "BlipVisionConfig", IMAGES, {"hidden_size": 64}),
    "GPT-Neo: no softmax scale": ("GPTNeoForCausalLM", "GPTNeoConfig", NEO, {"hidden_size": 48}),
    "GPT-Neo: kinds of layers": ("GPTNeoForCausalLM", "GPTNeoConfig", NEO,
                                 {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}),
    "GPT-2 with scores by layer": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "scale_attn_by_inverse_layer_idx": True},
                                   {"n_embd": 60, "n_layer": 5, "n_head": 5}),
    "Falcon: one key-value head": ("FalconForCausalLM", "FalconConfig", {**pico.SMALL, **pico.TOKENS},
                                   {"hidden_size": 56, "num_hidden_layers": 5, "num_attention_heads": 7}),
    "ModernBERT's first layer": ("ModernBertForMaskedLM", "ModernBertConfig", MODERN, {"num_hidden_layers": 7}),
    "ModernBERT's heads": ("ModernBertForMaskedLM", "ModernBertConfig", MODERN, {"hidden_size": 64}),
    "BitNet: a norm over all heads": ("BitNetForCausalLM", "BitNetConfig", LLAMA, WIDER_KV),
    "FalconMamba's rank": ("FalconMambaForCausalLM", "FalconMambaConfig", MAMBA, {"hidden_size": 48, "time_step_rank": 3}),
    "Differential attention": ("DiffLlamaForCausalLM", "DiffLlamaConfig", LLAMA, {"hidden_size": 64}),
    "DistilBERT's hidden_dim": ("DistilBertForMaskedLM", "DistilBertConfig",
                                {"vocab_size": 67, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}, {"hidden_dim": 72}),
    "DINOv2's SwiGLU": ("Dinov2ForImageClassification", "Dinov2Config",
                        {**{k: v for k, v in IMAGES.items() if k != "intermediate_size"}, "use_swiglu_ffn": True, "num_labels": 5},
                        {"hidden_size": 64, "num_hidden_layers": 3}),
    "LFM2's rounded feed-forward": ("Lfm2ForCausalLM", "Lfm2Config", {**LLAMA, "layer_types": ["conv", "full_attention"],
                                    "block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0}, {"intermediate_size": 96}),
    "DeBERTa's positions": ("DebertaV2ForMaskedLM", "DebertaV2Config", {**PLAIN, "relative_attention": True, "position_buckets": 8,
                            "pos_att_type": ["p2c", "c2p"]}, {"hidden_size": 64}),
}  # fmt: skip

# what cannot be exact, and the words that say so
BLOCKED = {
    "NanoChat's heads": ("NanoChatForCausalLM", "NanoChatConfig", LLAMA, {"hidden_size": 64}, "has no gain, and no weight"),
    "CTRL's sinusoids": ("CTRLLMHeadModel", "CTRLConfig", {"vocab_size": 67, "n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48},
                         {"n_embd": 64, "n_head": 8}, "sinusoids computed from the width"),
    "XGLM's sinusoids": ("XGLMForCausalLM", "XGLMConfig", {"vocab_size": 67, **pico.TOKENS, "d_model": 32, "ffn_dim": 48,
                         "num_layers": 2, "attention_heads": 4}, {"d_model": 64, "attention_heads": 8}, "sinusoids computed"),
    "ConvNeXt's stem": ("ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [8, 16], "depths": [1, 2],
                        "num_stages": 2, "image_size": 32}, {"hidden_sizes": [12, 24]}, "measured again"),
}  # fmt: skip


def pair(case: tuple) -> tuple[torch.nn.Module, transformers.PreTrainedConfig]:
    kind, config, entries, changes = case[:4]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**entries))
    pico.randomise(model)
    return model.eval(), getattr(transformers, config)(**{**entries, **changes})


@pytest.mark.parametrize("case", EXACT)
def test_what_is_promised_is_exact_after_a_reload(case, tmp_path):
    """Not proved while growing, so that no trial mends a wrong promise."""
    small, target = pair(EXACT[case])
    growth = Growth.of(small, list(like(small, target).methods), verify=False)
    assert growth.plans[0].preserves_function
    growth.model.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    inputs = example_inputs(small, batch_size=2, sequence_length=9)
    ours, theirs = outputs_of(small, inputs), outputs_of(again, inputs)
    for name, wanted in expected_outputs(growth.plans, ours, theirs).items():
        assert float((wanted - theirs[name]).abs().max()) <= 1e-5 * float(wanted.abs().max()), name
    shapes = {name: tensor.shape for name, tensor in type(small)(target).state_dict().items()}
    found = {name: tensor.shape for name, tensor in again.state_dict().items()}
    assert found == shapes


@pytest.mark.parametrize("case", BLOCKED)
def test_what_cannot_be_exact_is_not_promised_and_says_why(case):
    small, target = pair(BLOCKED[case])
    (method,) = like(small, target).methods
    plan = method.plan(ms.Anatomy.of(small), small)
    assert not plan.preserves_function
    assert any(BLOCKED[case][4] in row.obstacle for row in rows(plan, small))


def test_a_head_that_has_to_be_untied_is_listed():
    """No gain stands before OPT's head here, so a tied one would read the scaled embedding too loud."""
    small, target = pair(EXACT["OPT without affine norms"])
    found = like(small, target)
    assert found.fields["tie_word_embeddings"] == (False, True)
    assert ms.grow(small, list(found.methods)).config.tie_word_embeddings is False


def test_new_layers_stand_last_where_scores_are_divided_by_their_number():
    small, target = pair(EXACT["GPT-2 with scores by layer"])
    (method,) = like(small, target).methods
    layers = method.plan(ms.Anatomy.of(small), small).layers["layers"]
    assert [layer.silent for layer in layers] == [False, False, True, True, True]


def test_a_switch_transformers_head_is_scaled_only_while_it_is_tied():
    """Both networks twice as wide: tied, its head takes in a sqrt(2) times smaller stream; untied, the factor is gone altogether."""
    entries = {**T5, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    small = transformers.SwitchTransformersForConditionalGeneration(transformers.SwitchTransformersConfig(**entries))
    pico.randomise(small)
    tokens = {"input_ids": torch.arange(3, 12)[None], "decoder_input_ids": torch.arange(3, 10)[None]}
    wanted = small.eval()(**tokens).logits
    for tied in ("keep", "untie"):
        method = ms.LEMON(sizes={"hidden": 64}, noise=0.0, tied=tied)
        big = Growth.of(small, method, verify=False).model.eval()
        assert float((big(**tokens).logits - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_pixtrals_rows_do_not_become_columns():
    small, target = pair(("PixtralVisionModel", "PixtralVisionConfig", IMAGES, {"hidden_size": 64}))
    with pytest.raises(ms.MeristemError, match="rotates by the row what head_dim 8 rotates by the column"):
        ms.grow(small, like=target)


def test_stages_grow_to_a_target():
    """Configs whose depths stand in a list, and their kinds of layers nowhere."""
    entries = {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    }
    small, target = pair(("SwinForImageClassification", "SwinConfig", entries, {"embed_dim": 32, "num_heads": [4, 8]}))
    growth = Growth.of(small, like=target)
    assert growth.certificate.holds
    assert growth.model.config.embed_dim == 32
