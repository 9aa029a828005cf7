"""Tiny models of any type that transformers knows: its default config with every size made small, by the fields' names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

LAYERS = 3
WIDTH, HEADS, HEAD_DIM = 64, 4, 16

# Field name (regular expression, whole name) -> value. The first row that matches counts; lists keep their length.
SIZES: tuple[tuple[str, Any], ...] = (
    (r"(pad|padding)_(token_)?id(x)?", 0),
    (r"bos_token_id|decoder_start_token_id", 1),
    (r"(eos|sep|cls|mask|unk|eod|blank)_token_id", 2),
    (r"(image|img|image_pad)_(token_id|token_index|index)|image_token", 3),
    (r"video_(token_id|token_index|index)", 4),
    (r"(audio|sound)_(token_id|token_index|index)", 5),
    (r"(vision|image|video)_(start|bos|begin)_(token_id|token_index|index)|boi_token_(id|index)", 6),
    (r"(vision|image|video)_(end|eos)_(token_id|token_index|index)|eoi_token_(id|index)", 7),
    (r"audio_(start|bos|begin)_(token_id|token_index|index)|boa_token_(id|index)", 8),
    (r"audio_(end|eos)_(token_id|token_index|index)|eoa_token_(id|index)", 9),
    (r"(image|audio|video|vision|timestamp)_.*(token_id|token_index|index)", 10),
    (
        r"vocab_size|.*_vocab_size|vocab_size_per_layer_input|ngram_vocab_size_base|n_tokens|encoder_hash_byte_group_vocab",
        96,
    ),
    (
        r"hidden_size|d_model|n_embd|dim|emb_dim|hidden_dim|attention_hidden_size|audio_hidden_size|lru_width|decoder_hidden_size",
        WIDTH,
    ),
    (r"num_key_value_heads|num_kv_heads|multi_query_group_num|num_query_groups|swa_num_key_value_heads", 2),
    (r"num_attention_heads|n_head|num_heads|n_heads|attention_heads|(en|de)coder_attention_heads", HEADS),
    (
        r"num_(en|de)coder_attention_heads|swa_num_attention_heads|num_self_attention_heads|num_cross_attention_heads",
        HEADS,
    ),
    (r"head_dim|d_kv|dim_head|d_head|kv_channels|v_head_dim|qk_nope_head_dim|swa_head_dim|swa_v_head_dim", HEAD_DIM),
    (r"attention_head_size|attention_head_dim|index_head_dim|linear_head_dim|global_head_dim", HEAD_DIM),
    (r"qk_rope_head_dim|rotary_dim", 8),
    (r"qk_head_dim", 24),
    (r"linear_num_value_heads|linear_num_heads|index_n_heads", HEADS),
    (r"linear_num_key_heads", 2),
    (r"linear_(key|value)_head_dim", HEAD_DIM),
    (r"(q|kv|o)_lora_rank", 24),
    (r"moe_intermediate_size|expert_ffn_hidden_size|moe_shared_expert_intermediate_size", 48),
    (r"shared_expert_intermediate_size|shared_intermediate_size|shared_experts_intermediate_size", 48),
    (r"intermediate_size|ffn_dim|n_inner|d_ff|dff|d_inner|dim_ff|(en|de)coder_ffn_dim|feed_forward_size", 96),
    (r"ffn_hidden_size|intermediate_size_mlp|dense_intermediate_size|prefix_dense_intermediate_size", 96),
    (r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|num_decoder_layers", LAYERS),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_local_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|n_shared_experts|moe_num_shared_experts|num_shared_experts|top_k", 2),
    (r"n_group|topk_group|num_expert_group|pretraining_tp|o_groups", 1),
    (r"expert_capacity", 64),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"num_nextn_predict_layers|num_mtp_modules|num_kv_shared_layers", 0),
    (r"embedding_size|entity_emb_size|word_embed_proj_dim|embedding_dim", 32),
    (r"hidden_size_per_layer_input", 16),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions|context_length|max_seq_len|model_max_length",
        128,
    ),
    (r"max_(en|de)coder_position_embeddings|max_2d_position_embeddings|max_length|mem_len", 128),
    (r"sliding_window|sliding_window_size|attention_window_size|attention_chunk_size|local_attention", 8),
    (r"mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", HEAD_DIM),
    (r"mamba_d_ssm", 128),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"mamba_n_groups|n_groups|mamba_ngroups", 1),
    (r"time_step_rank|mamba_dt_rank", 8),
    (r"(mamba_)?chunk_size", 8),
    (r"image_size", 64),
    (r"o_groups|embed_dim|d_latents", 32),
    (r"mm_tokens_per_image", 4),
    (r"(en|de)coder_num_attention_heads", HEADS),
    (r"(en|de)coder_num_hidden_layers", LAYERS),
    (r"output_channels|reassemble_hidden_size|pooler_hidden_size", WIDTH),
    (r"upsample_groups", 16),
    (r"num_queries|num_denoising", 8),
    (
        r"(out|text|output|llm|language|lm|target|adapter_(in|out)|proj(ector|ection)?|mm)_?(hidden_size|hidden_dim|dim)",
        WIDTH,
    ),
    (r"(projection|proj|output|out|text_embed|vision_output|out_hidden)_?(dim|size|features)", WIDTH),
    (
        r"conv_dim|num_conv_pos_embeddings|codevector_dim|proj_codevector_dim|classifier_proj_size|output_hidden_size",
        16,
    ),
    (r"num_conv_pos_embedding_groups", 4),
    (r"num_mel_bins", 16),
    (r"feature_projection_input_dim", 16),
    (r"num_latents|segment_means_seq_len|num_landmarks", 8),
    (r"index_topk", 6),  # fewer than the tokens of the example, so that the choice counts
    (r"n_langs|num_codebooks", 1),
    (r"type_vocab_size", 2),
)
# Per-layer lists: cut to the number of layers that the model gets.
PER_LAYER = (
    r"layer_types|mlp_layer_types|layers_block_type|indexer_types|no_rope_layers|attention_layers|layer_rope_theta"
)


# What single types need beyond their fields' names: their own consistency rules.
SECTIONS = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
}  # of half a head
RESNET = {"model_type": "resnet", "hidden_sizes": [16, 32, 64, 64], "embedding_size": 16, "depths": [1, 1, 1, 1]}
OPT = {"model_type": "opt", "vocab_size": 96, "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 3,
       "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "glm4v_text", "glm4v_moe_text", "glm_ocr_text",
                     "glm_image_text", "glm46v_text", "paddleocr_vl_text", "hunyuan_vl_text", "ernie4_5_vl_moe_text"), SECTIONS),
    **{detr: {"use_timm_backbone": False, "backbone": None, "backbone_config": {**RESNET, "out_indices": stages}}
       for stages, names in (([4], ("detr", "conditional_detr", "dab-detr", "table-transformer")), ([2, 3, 4], ("deformable_detr",)))
       for detr in names},
    **{series: {"prediction_length": 8, "context_length": 16}
       for series in ("autoformer", "informer", "time_series_transformer")},
    **{dense: {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]} for dense in ("beit", "data2vec-vision")},
    **{encoder: {"num_blocks": 2} for encoder in ("eomt", "eomt_dinov3", "videomt")},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "oneformer": {"conv_dim": 64, "mask_dim": 64, "hidden_dim": 64},
    "glm5_next_text": {"index_topk": 2048},  # in pools of 16
    "layoutlmv3": {"hidden_size": 96, "coordinate_size": 16, "shape_size": 16, "input_size": 64, "image_size": 64},
    "lilt": {"hidden_size": 96},
    "hy_v4_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
    **{composite: {"image_token_index": 3, "text_config": OPT} for composite in ("blip-2", "instructblip", "instructblipvideo")},
    **{encoder: {"intermediate_size": 256} for encoder in ("voxtral_encoder", "voxtral_realtime_encoder")},
    **{encoder: {"vocab_size": 96} for encoder in ("wav2vec2-bert", "wav2vec2-conformer")},
    "esm": {"vocab_size": 33, "token_dropout": False, "mask_token_id": 32, "pad_token_id": 1},
    "levit": {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "key_dim": [8, 8, 8], "depths": [2, 2, 2],
              "down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2]], "image_size": 64},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 8, "expand": 2},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32, "embedding_size": 32},
    "modernbert": {"layer_types": None},
    "pvt": {"hidden_sizes": [16, 32, 64, 64], "num_attention_heads": [1, 2, 4, 4]},
    "pvt_v2": {"hidden_sizes": [16, 32, 64, 64], "num_attention_heads": [1, 2, 4, 4]},
    "segformer": {"hidden_sizes": [16, 32, 64, 64], "num_attention_heads": [1, 2, 4, 4]},
    "reformer": {"axial_pos_shape": (8, 16), "axial_pos_embds_dim": (32, 32), "hidden_size": 64,
                 "lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8, "attn_layers": ["local", "local", "local"]},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},  # a layer of either kind among three
    "squeezebert": {"embedding_size": 64},
    "swin2sr": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 16},
    "vjepa2": {"crop_size": 32, "frames_per_clip": 4, "num_hidden_layers": 3, "pred_num_hidden_layers": 2, "pred_hidden_size": 32,
               "pred_num_attention_heads": 2, "pred_num_mask_tokens": 2},
    "swin": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 2},
    "donut-swin": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32,
                   "patch_size": 2},
    "swinv2": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32,
               "patch_size": 2, "pretrained_window_sizes": [0, 0]},
    "hgnet_v2": {"hidden_sizes": [16, 32, 48, 64], "stage_out_channels": [16, 32, 48, 64], "stem_channels": [3, 8, 12],
                 "stage_in_channels": [12, 16, 32, 48], "stage_mid_channels": [8, 8, 12, 16],
                 "stage_numb_of_layers": [2, 2, 2, 2], "stage_num_blocks": [1, 1, 1, 1]},
    "hiera": {"embed_dim": 32, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 16], "image_size": [64, 64]},
    "bit": {"hidden_sizes": [32, 64, 96, 128], "embedding_size": 16, "num_groups": 4},
    "resnet": {"hidden_sizes": [16, 32, 64, 64], "embedding_size": 16},
    "regnet": {"hidden_sizes": [16, 32, 64, 64], "embedding_size": 16, "groups_width": 8},
    "convnext": {"hidden_sizes": [16, 32, 48, 64]},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "glpn": {"hidden_sizes": [32, 64, 160, 256], "decoder_hidden_size": 64},  # its own: no two the same when one is doubled
    "focalnet": {"embed_dim": 16, "hidden_sizes": [16, 32, 64, 128]},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "perceiver": {"num_latents": 8, "d_latents": 32, "d_model": 32, "num_self_attends_per_block": 2,
                  "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "qk_channels": 32, "v_channels": 32},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "num_heads": 4, "qk_dim_factor": 1.0},
    **{encoder: {"num_key_value_heads": 4}  # loaded from fused projections: as many keys as queries
       for encoder in ("nemotron3_5_transcribe_asr_audio", "nemotron3_diarization_audio",
                       "nemotron3_5_transcribe_word_timestamp")},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "led": {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 8},
    "longformer": {"attention_window": 8},
    "tapas": {"type_vocab_sizes": [3, 8, 8, 2, 8, 8, 10]},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32, "n_mamba_heads": 2,
              "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4},
    "zamba2": {"mamba_headdim": 16, "n_mamba_heads": 8, "mamba_ngroups": 1, "hybrid_layer_ids": [1, 3],
               "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4,
               "attention_hidden_size": 128, "attention_head_dim": 32},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
                       "indexer_compress_ratio": 4},
    "siglip2_vision_model": {"num_patches": 16},
    "shieldgemma2": {"yes_token_index": 4, "no_token_index": 5},
    "textnet": {"stem_out_channels": 16, "hidden_sizes": [16, 24, 32, 48, 64]},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
             "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2}},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots3_note_text": {"num_key_value_heads": 4, "swa_num_key_value_heads": 4, "swa_num_attention_heads": 4},
    "deepseek_v2": {"head_dim": 8, "num_key_value_heads": 4, "num_experts_per_tok": 2},
    "emu3": {"pad_token_id": 0},
    "llama4": {"pad_token_id": 0},
    "cohere_compass_text": {"layer_types": ["full_attention"] * 3,
                            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention"]},
}  # fmt: skip


def shrunk_entries(config: Any) -> dict[str, Any]:
    """The entries that make a default config tiny: its integer fields by the table, its per-layer lists cut short."""
    entries: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, bool) or value is None or isinstance(getattr(type(config), name, None), property):
            continue
        if hasattr(value, "model_type"):
            switches = {n: v for n, v in value.to_diff_dict().items() if isinstance(v, bool)}
            entries[name] = type(value)(**{**switches, **shrunk_entries(value)})
        elif isinstance(value, int):
            small = _small(name)
            if small is not None:
                entries[name] = small if name.endswith(("layers", "layer")) else min(value, small)
        elif isinstance(value, list | tuple) and value:
            cut = _small_list(name, list(value))
            if cut is not None:
                entries[name] = cut
        elif isinstance(value, dict) and "mrope_section" in value:  # shares of half a head
            entries[name] = {**value, "mrope_section": [2, 3, 3]}
    return {**entries, **_taken_out(config), **SPECIAL.get(config.model_type, {})}


def _taken_out(config: Any) -> dict[str, Any]:
    """What a backbone hands on: of as many stages as before; of plain layers, of as many layers as it hands on."""
    indices = [i for i in vars(config).get("_out_indices") or () if isinstance(i, int)]
    if len(indices) < 2 or not hasattr(config, "stage_names"):
        return {}
    if len(config.stage_names) < 8:
        return {"out_indices": indices}
    return {"num_hidden_layers": len(indices), "out_indices": list(range(1, len(indices) + 1))}


def _small(name: str) -> int | None:
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)


def _small_list(name: str, value: list) -> list | None:
    if re.fullmatch(PER_LAYER, name):
        kinds = list(dict.fromkeys(map(str, value)))
        picked = [next(v for v in value if str(v) == kind) for kind in kinds][:LAYERS]
        return (picked * LAYERS)[:LAYERS] if len(picked) < LAYERS else picked
    if re.fullmatch(r"eos_token_id", name):
        return [2]
    if name == "image_grid_pinpoints":
        return [[64, 128], [128, 64]]
    if all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        if re.fullmatch(r"depths|num_block_repeats", name):
            return [2] * len(value)
        if re.fullmatch(r"hidden_sizes|embed_dims", name):
            return [16 * 2**i for i in range(len(value))]
        if re.fullmatch(r"num_heads|num_attention_heads", name):
            return [2] * len(value)
        if re.fullmatch(r"image_size", name):
            return [64] * len(value)
        if re.fullmatch(r"intermediate_size", name):
            return [96] * len(value)
        if re.fullmatch(r"conv_dim|tdnn_dim|xvector_output_dim", name):
            return [16] * len(value)
    return None


# Corrections tried in turn until the model can be built and run; then what single types need beyond the table.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": HEADS},
    {"num_key_value_heads": 1},
    {"head_dim": HEAD_DIM},
    {"num_hidden_layers": 4},
    {"num_hidden_layers": 6},
    {"intermediate_size": 4 * WIDTH},
    {"head_dim": 8},
    {"head_dim": 8, "num_key_value_heads": HEADS},
    {"is_decoder": True},
)


def tiny_models(model_class: type[nn.Module], default_config: Any) -> Iterator[nn.Module]:
    """Candidates for a tiny model of this class; the first that runs is the one to use.

    Raises:
        Exception: of the last candidate, if none can be built.
    """
    last: Exception | None = None
    any_built = False
    entries = shrunk_entries(default_config)
    for variant in VARIANTS:
        known = {k: v for k, v in variant.items() if k in vars(default_config) or k in ("head_dim", "is_decoder")}
        if variant and not known:
            continue
        try:
            config = type(default_config)(**{**entries, **known})
            with torch.device("meta"):
                size = sum(p.numel() for p in model_class(config).parameters())
            if size > 30_000_000:
                raise ValueError(f"still {size:,} parameters after shrinking")
            yield model_class(config)
            any_built = True
        except Exception as error:
            last = last or error
    if not any_built and last is not None:
        raise last


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Random weights, biases and norms, so that nothing hides behind a 1 or 0; matrices keep logits of order one."""
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() <= 1 or max(parameter.shape) == parameter.numel() or not parameter.numel():
            parameter.data += 0.2 * noise
        else:
            parameter.data = noise * parameter[0].numel() ** -0.5
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.2 * torch.randn(buffer.shape, generator=generator)
        elif name.endswith("running_var"):
            buffer *= 0.5 + torch.rand(buffer.shape, generator=generator)
