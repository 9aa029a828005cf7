"""Common naming conventions, as data. Inference proposes them, and shapes confirm or reject them.

These are names that families share. What a single family does differently is in `overrides.py`.
"""

from __future__ import annotations

# Which axis a config field sets. The first field of each row that is present and set gives the axis its size; dots lead into
# nested configs, and a list has one entry for each stage.
FIELDS: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "d_model", "n_embd", "emb_dim", "embed_dim", "dim", "hidden_sizes", "embed_dims"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "attn_config.kv_n_heads", "num_query_groups"),
    "head_dim": ("head_dim", "d_kv", "dim_head", "d_head", "kv_channels", "attention_head_size"),
    "ffn": (
        "intermediate_size",
        "ffn_dim",
        "n_inner",
        "d_ff",
        "ffn_hidden_size",
        "dff",
        "d_inner",
        "dim_ff",
        "feed_forward_size",
        "ffn_config.ffn_hidden_size",
    ),
    "encoder_ffn": ("encoder_ffn_dim",),
    "decoder_ffn": ("decoder_ffn_dim",),
    "moe_ffn": ("moe_intermediate_size", "expert_ffn_hidden_size"),
    "shared_ffn": (
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
        "shared_experts_intermediate_size",
    ),
    "dense_ffn": ("intermediate_size_mlp", "dense_intermediate_size", "prefix_dense_intermediate_size"),
    "encoder_heads": ("encoder_attention_heads", "num_encoder_attention_heads", "encoder_num_attention_heads"),
    "decoder_heads": (
        "decoder_attention_heads",
        "num_decoder_attention_heads",
        "decoder_num_attention_heads",
        "decoder_self_attention_heads",
    ),
    "cross_heads": ("decoder_cross_attention_heads",),  # a decoder whose cross-attention has heads of its own
    "encoder_kv_heads": ("encoder_num_key_value_heads",),
    "decoder_kv_heads": ("decoder_num_key_value_heads",),
    "swa_heads": ("swa_num_attention_heads",),  # sliding-window layers with heads of their own
    "swa_kv_heads": ("swa_num_key_value_heads",),
    "swa_head_dim": ("swa_head_dim",),
    "linear_heads": (
        "linear_num_value_heads",
        "linear_num_heads",
        "linear_attn_config.num_heads",
    ),  # gated linear attention: value heads in key groups
    "linear_kv_heads": ("linear_num_key_heads",),
    "linear_head_dim": ("linear_value_head_dim", "linear_head_dim", "linear_attn_config.head_dim"),
    "linear_key_head_dim": ("linear_key_head_dim",),
    "ssm_hidden": ("mamba_d_ssm",),  # state-space blocks: heads in groups that share B and C
    "ssm_heads": ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"),
    "ssm_kv_heads": ("mamba_n_groups", "mamba_ngroups", "n_groups"),
    "ssm_head_dim": ("mamba_d_head", "mamba_head_dim", "mamba_headdim"),
    "bottleneck_hidden": ("true_hidden_size",),  # blocks narrower than the stream, whose heads share this out
    "state": ("mamba_d_state", "ssm_state_size", "state_size"),
    "rank": ("time_step_rank", "mamba_dt_rank"),  # of what a state-space block computes its time steps from
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "max_target_positions"),  # where they are learned
}

# Further fields that hold the same number and have to move with the axis while they do.
LINKED_FIELDS: dict[str, tuple[str, ...]] = {
    "projection": ("text_config.projection_dim", "vision_config.projection_dim"),
    "vision_hidden": ("text_config.projection_size",),
    "bottleneck_hidden": ("intra_bottleneck_size",),
    "hidden": (
        "word_embed_proj_dim",
        "pooler_output_size",
        "pooler_hidden_size",
        "embedding_size",
        "embedding_dim",
        "lru_width",
        "decoder.cross_attention_hidden_size",
        "perceiver_config.hidden_size",
        "ffn_config.hidden_size",
    ),
}

# Fields by which the other parts of a composite (vision and audio towers, projectors) say the width of what they hand to its
# language model. They move with it while they hold the same number, unless the language model has such a field of its own, or
# only the whole has one of the `JOINT_FIELDS`: then it is that of a space which both are projected into, as in CLIP.
JOINT_FIELDS = ("projection_dim", "output_dim", "proj_dim")
JOINING_FIELDS = (
    "out_hidden_size",
    "text_hidden_size",
    "projection_dim",
    "output_dim",
    "proj_dim",
    "adapter_in_dim",
    "adapter_out_dim",
    "output_hidden_size",
    "output_size",
    "audio_hidden_size",
    "language_hidden_size",
    "llm_hidden_size",
    "reassemble_hidden_size",
)
OUTPUT_BESIDE = {"embed_dim": "hidden_size"}  # a part that has both fields returns the second

# The parts of a composed encoder-decoder that widen together, since one reads what the other writes without a projection.
ENCODERS_AND_DECODERS = ("encoder", "decoder", "encoder_config", "decoder_config")
# Further parts that are joined so, by the model type of the whole: one attends to the other, or both have to be as wide.
JOINED_PARTS: dict[str, tuple[str, ...]] = dict.fromkeys(("pix2struct", "tipsv2"), ("vision_config",))
# Fields of a whole that hold its language model's width for a reason of their own, by its model type: OWL-ViT compares text, as
# projected, with boxes of that width; GLPN projects a stage's features to the decoder's width only where they differ.
LINKED_BY_TYPE: dict[str, tuple[str, ...]] = {
    "owlvit": ("projection_dim",),
    "owlv2": ("projection_dim",),
    "glpn": ("decoder_hidden_size",),
}
# Further axes by the model type of the whole, with the path of the field that sets each: the space that two towers are compared in,
# and the width of the tower next to the text's.
_TOWER = {
    "vision_hidden": "vision_config.hidden_size",
    "vision_heads": "vision_config.num_attention_heads",
    "vision_ffn": "vision_config.intermediate_size",
}
AXES_BY_TYPE: dict[str, dict[str, str]] = {
    "clip": {"projection": "projection_dim", **_TOWER},
    "clip_text_model": {"projection": "projection_dim"},
    "clip_vision_model": {"projection": "projection_dim"},
    "siglip": _TOWER,
    "distilbert": {"ffn": "hidden_dim"},
    "siglip_text_model": {"projection": "projection_size"},
    "siglip2_text_model": {"projection": "projection_size"},
}
DEPTHS_BY_TYPE: dict[str, dict[str, str]] = {
    name: {"vision_layers": "vision_config.num_hidden_layers"} for name in ("clip", "siglip")
}
# Axes along which the outputs of two towers are compared by their angle, as they leave a stream that norms measure.
COMPARED_BY_TYPE: dict[str, tuple[str, ...]] = {"siglip": ("vision_hidden",)}
# An encoder whose heads share out a width of its own (RT-DETR's, with positions in two dimensions) stays as wide as it is.
ENCODER_WIDTH = "encoder_hidden_dim"

# Fields that grow in proportion to an axis (numbers, or lists of such), so that what they share out keeps its size.
PROPORTIONAL_FIELDS: dict[str, tuple[str, ...]] = {
    "hidden": (
        "num_conv_pos_embedding_groups",
        "axial_pos_embds_dim",
        "attention_hidden_size",
        "coordinate_size",
        "shape_size",
        "merged_hidden_size",
    ),
    "heads": ("num_attention_heads_per_layer", "num_key_value_heads_per_layer"),
    "stage0_hidden": ("embedding_size", "stem_out_channels", "stage_out_channels.0", "stage_in_channels.1"),
    "stage1_hidden": ("stage_out_channels.1", "stage_in_channels.2"),
    "stage2_hidden": ("stage_out_channels.2", "stage_in_channels.3"),
    "stage3_hidden": ("stage_out_channels.3",),
}

# Axis of depth -> fields that set it.
DEPTH_FIELDS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depths"),
    "encoder_layers": ("encoder_layers", "num_encoder_layers", "encoder_num_hidden_layers"),
    "decoder_layers": ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers"),
}

# Lists with the kind of every layer that some configs derive their number of layers from.
DEPTH_LISTS = ("layers_block_type", "layer_types", "block_types")

# Config lists with one entry for each layer. A list of another name (eos_token_id) may have as many entries, and stays.
LAYER_LISTS = r".*(layer|block|per_layer|attn_|sparsity|indexer_types|sliding_windows|attention_window).*|intermediate_size|num_experts"
# Lists of the numbers of the layers that are of some kind, and not one entry for each layer.
LAYER_NUMBERS = (
    r"moe_layers|mlp_only_layers|cross_attention_layers|hybrid_layer_ids|attn_layer_indices|full_attn_idxs|"
    r"rope_scaling_layers|window_block_ind(exes|ices)|fullatt_block_indexes|full_attention_block_indices"
)
# Lists of numbers of layers after which an output is read from the stream.
LAYER_OUTPUTS = r"_?out_indices|backbone_out_indices|out_layers"
# Classes that number what comes before the layers as 1, and not as 0.
OUTPUTS_FROM_ONE = r"(Beit|Data2VecVision)ForSemanticSegmentation"
# How many of the last layers do more than the others.
LAST_LAYERS = r"num_blocks|num_kv_shared_layers"
# For each layer the number of the one whose keys and values it reads: its own, or that of an earlier one.
LAYER_SOURCES = r"kv_source_layers"
# Where a part of the config has one of these, what a layer computes depends on its number: it reads the output of that layer of
# another part, or divides its scores by its number.
NUMBERED_FIELDS = ("deepstack_visual_indexes", "deepstack_layer_map", "scale_attn_by_inverse_layer_idx")

NORM_EPS_FIELDS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")

# The meaning of an axis without its scope ("encoder_ffn" and "moe_ffn" are both "ffn"): what methods choose by.
KINDS = (
    "hidden",
    "ffn",
    "kv_heads",
    "group",
    "heads",
    "key_head_dim",
    "head_dim",
    "experts",
    "vocab",
    "state",
    "positions",
    "projection",
)

LEARNED = ("positions", "rank")  # axes that count only where their field shapes a tensor

GROWING = ("hidden", "ffn", "kv_heads", "group", "heads")  # the kinds that width methods change

QUERY, KEY_VALUE = "heads head_dim", "kv_heads head_dim"
GATED_QUERY = "heads 2 head_dim"  # each head's query and its gate
CONCATENATED, GROUPED = "heads head_dim + 2 kv_heads head_dim", "kv_heads (group + 2) head_dim"

SSM_CLASS = r"Mamba|Mixer|SSM"
ATTENTION_CLASS = r"Attention|Attn|DeltaNet|SelfAtt|SSMLayer"

# What a parameter's dimension is made of inside a module of a certain class: (class, name of the parameter or of the module
# that holds the weight, side, layouts to try in order). Heads may belong to any scope that the config has (`ssm_heads` ...).
LAYOUTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (SSM_CLASS, r"x_proj", "out", ("rank + 2 state",)),
    (SSM_CLASS, r"in_proj", "out", ("2 heads head_dim + 2 kv_heads state + heads",)),
    (SSM_CLASS, r"conv1d", "out", ("heads head_dim + 2 kv_heads state",)),
    (SSM_CLASS, r"out_proj", "in", ("heads head_dim",)),
    (SSM_CLASS, r"norm", "out", ("heads head_dim",)),
    (SSM_CLASS, r"A_log|D|dt_bias", "out", ("heads",)),
    (r"DeltaNet", r"in_proj_qkvz", "out", ("kv_heads (2 key_head_dim + 2 group head_dim)",)),
    (r"DeltaNet", r"in_proj_ba", "out", ("kv_heads 2 group",)),
    (r"DeltaNet", r"in_proj_qkv|conv1d", "out", ("2 kv_heads key_head_dim + heads head_dim",)),
    (r"DeltaNet", r"in_proj_z", "out", (QUERY,)),
    (
        ATTENTION_CLASS,
        r"q_proj|query|q|q_lin|linear_q|linear_pos|wq|to_q|project_q|q_head|query_proj|g_proj|"
        r"q_(content|pos|pos_sine)_proj|(self|cross)_attn_query_(content|pos|pos_sine)_proj|q_linear|Wq|query_global|layout_query|"
        r"to_query|(w2e|e2w|e2e)_query|pos_query_proj|pos_q_proj|q_attn|output_gate",
        "out",
        (QUERY, GATED_QUERY),
    ),
    (
        ATTENTION_CLASS,
        r"k_proj|key|k|k_lin|linear_k|wk|to_k|project_k|k_head|key_proj|k_(content|pos)_proj|(self|cross)_attn_key_(content|pos)_proj|"
        r"k_linear|Wk|key_global|layout_key|to_key|pos_key_proj|pos_proj",
        "out",
        (KEY_VALUE,),
    ),
    (
        ATTENTION_CLASS,
        r"v_proj|value|v|v_lin|linear_v|wv|to_v|project_v|v_head|value_proj|(self|cross)_attn_value_proj|Wv|value_global|layout_value",
        "out",
        (KEY_VALUE,),
    ),
    (ATTENTION_CLASS, r"c_attn|qkv_proj|qkv|Wqkv|in_proj|qkv_linear|att_proj", "out", (CONCATENATED,)),
    (r"MultiheadAttention", r"in_proj_(weight|bias)", "out", (CONCATENATED,)),
    (ATTENTION_CLASS, r"query_key_value", "out", (GROUPED, CONCATENATED)),
    (
        ATTENTION_CLASS,
        r"o_proj|out_proj|o|dense|c_proj|proj|wo|Wo|out_lin|linear_out|to_out|attention_out|output_proj|projection|projection_layer|"
        r"output|proj_out|post_proj",
        "in",
        (QUERY,),
    ),
    (
        ATTENTION_CLASS,
        r"relative_k_proj|linear_pos",
        "in",
        ("frequencies_hidden 2",),
    ),  # sinusoids, a sine and a cosine for each
    (ATTENTION_CLASS, r"q_norm|q_layernorm|query_norm", "out", (QUERY, "head_dim")),
    (ATTENTION_CLASS, r"k_norm|k_layernorm|key_norm", "out", (KEY_VALUE, "head_dim")),
    (ATTENTION_CLASS, r"(inner_)?attn_(sub_norm|ln)", "out", (QUERY,)),  # between the heads and what reads them
    (ATTENTION_CLASS, r"relative_attention_bias", "out", ("heads",)),
)

# Parameters without a layer of their own that are contracted with features: (class, parameter, role of each dimension).
RAW_READERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"Hyper(Connection|Head)", r"(hc_)?fn", ("write", "read")),
    (r"AttentionResidual", r"query", ("read",)),
    (r"ZambaMamba", r"x_proj_weight|dt_proj_weight", ("write", "write", "read")),  # a product for each head
    (r"Tapas", r"(column_)?output_weights", ("read",)),
    (r"AttentionResidual", r"query", ("write", "read")),
    (r"MultiheadAttention", r"in_proj_weight", ("write", "read")),
    (r"AdditiveAttention", r"w_g", ("read", "write")),
    (r"DbrxExpertGLU", r"w1|v1", ("write", "read")),
    (r"DbrxExpertGLU", r"w2", ("read", "write")),
    (r"XLNetRelativeAttention|FunnelRel", r"q|k|v|r|r_kernel", ("read", "write", "write")),
    (r"XLNetRelativeAttention", r"o", ("write", "read", "read")),
)
# What a norm measures that has no weights and takes whatever comes: (class around it, its name, layout), the first that fits.
PLAIN_NORMS: tuple[tuple[str, str, str], ...] = (
    (SSM_CLASS, r"dt_.*", "rank"),
    (SSM_CLASS, r"[bc]_.*", "state"),
    (SSM_CLASS, r".*", "1"),  # nothing that grows
    (ATTENTION_CLASS, r"(inner_)?attn_(sub_norm|ln)", QUERY),
    (ATTENTION_CLASS, r".*", "head_dim"),
    (r".*", r"ffn_(sub_norm|layernorm|ln)", "ffn"),
    (r".*", r".*", "hidden"),
)
ROUTER_CLASS = r"Router|Gate"
NORM_CLASS = r"Norm"
NORM_GAINS = ("weight", "scale", "gamma", "gain", "g")  # what the gain of a norm is called, the usual name first
ENCODER_SCOPE, DECODER_SCOPE, CROSS_SCOPE = "encoder", "decoder", "cross"
