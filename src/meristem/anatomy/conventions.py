"""The field's naming conventions, as data. Inference proposes them and shapes confirm or refuse them.

Nothing here is per model: these are names that families share. What a single family does differently stands in
`overrides.py`.
"""

from __future__ import annotations

# Which axis a config field sets. The first part of each field that is present and set gives the axis its size.
FIELDS: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "d_model", "n_embd", "dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim", "d_kv"),
    "ffn": ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"),
    "encoder_ffn": ("encoder_ffn_dim",),
    "decoder_ffn": ("decoder_ffn_dim",),
    "moe_ffn": ("moe_intermediate_size",),
    "shared_ffn": ("shared_expert_intermediate_size",),
    "encoder_heads": ("encoder_attention_heads",),
    "decoder_heads": ("decoder_attention_heads",),
    "experts": ("num_local_experts", "num_experts"),
    "vocab": ("vocab_size",),
}

# Further fields that hold the same number and have to move with the axis while they do.
LINKED_FIELDS: dict[str, tuple[str, ...]] = {
    "hidden": ("word_embed_proj_dim", "pooler_output_size"),
}

# Axis of depth -> fields that set it.
DEPTH_FIELDS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "encoder_layers": ("encoder_layers",),
    "decoder_layers": ("decoder_layers", "num_decoder_layers"),
}

NORM_EPS_FIELDS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")

# The meaning of an axis without its scope ("encoder_ffn" and "moe_ffn" are both "ffn"): what methods choose by.
KINDS = ("hidden", "ffn", "kv_heads", "group", "heads", "head_dim", "experts", "vocab")

QUERY, KEY_VALUE = "heads head_dim", "kv_heads head_dim"
CONCATENATED, GROUPED = "heads head_dim + 2 kv_heads head_dim", "kv_heads (group + 2) head_dim"

# Inside a module whose class is an attention: (module name, side, layouts to try in order).
ATTENTION_LAYOUTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"q_proj|query|q|q_lin|wq|to_q", "out", (QUERY,)),
    (r"k_proj|v_proj|key|value|k|v|k_lin|v_lin|wk|wv|to_k|to_v", "out", (KEY_VALUE,)),
    (r"c_attn|qkv_proj|qkv|Wqkv|in_proj", "out", (CONCATENATED,)),
    (r"query_key_value", "out", (GROUPED,)),
    (r"o_proj|out_proj|o|dense|c_proj|proj|wo|out_lin|to_out", "in", (QUERY,)),
    (r"q_norm|q_layernorm|query_norm", "out", (QUERY, "head_dim")),
    (r"k_norm|k_layernorm|key_norm", "out", (KEY_VALUE, "head_dim")),
    (r"relative_attention_bias", "out", ("heads",)),
)

ATTENTION_CLASS = r"Attention|Attn"
ROUTER_CLASS = r"Router|Gate"
NORM_CLASS = r"Norm"
ENCODER_SCOPE, DECODER_SCOPE = "encoder", "decoder"
