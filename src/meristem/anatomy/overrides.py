"""What single families do that neither names nor shapes show. Users can pass further entries to `Anatomy.of`.
Each field of `Override` is one fact about the mathematics of a model type, as data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Multiplier:
    """The output of some tensors is multiplied by `config.field ** exponent`.

    Args:
        tensor: the names of the tensors, as a regular expression that matches the whole name.
        field: the entry of the config.
        exponent: the exponent.
        when: an entry of the config that switches the factor on. Always on if None.
    """

    tensor: str
    field: str
    exponent: float
    when: str | None = None


@dataclass(frozen=True)
class Override:
    """Facts about one model type that neither names nor shapes show.

    Args:
        layouts: rows (tensor name, "in" or "out", layout), for tensors whose input or output dimension has a
            layout of its own. The name is a regular expression on the full path.
        alibi: an entry of the config, or True: attention adds ALiBi slopes. A head then keeps its function
            only with its slope.
        numbered: what a layer computes depends on its number, so new layers can only follow all others.
        concatenated: an entry of the config with a list of widths (or with the width of each part) that are
            concatenated into the residual stream. Each part grows in its place.
        paired: sines and cosines of the width are added to the inputs of some layers, and not to the residual
            stream. The stream then grows in pairs of units, so that the first copy of each is where its old
            frequency is, and those layers read only the first copies.
        shares: rows (tensor name, which), for tensors outside the blocks with an entry for some blocks:
            "between" (all but the last) or "last" (the last few). The name is a regular expression that
            matches the whole name.
        transposed: linear layers, by a regular expression on the path, whose weight is multiplied from the
            right in the forward pass.
        roles: rows (tensor name, the role of each dimension): "write" if it produces features, "read" if it
            is summed over, "gain", "shift", or "fixed". The name is a regular expression that matches the
            whole name.
        unscaled: attention scores are not divided by the square root of the width of the heads.
        multipliers: factors of the forward pass that are powers of an entry of the config.
    """

    layouts: tuple[tuple[str, str, str], ...] = ()
    alibi: bool | str = False
    numbered: bool = False
    concatenated: str | None = None
    paired: bool = False
    shares: tuple[tuple[str, str], ...] = ()
    transposed: str | None = None
    roles: tuple[tuple[str, tuple[str, ...]], ...] = ()
    unscaled: bool = False
    multipliers: tuple[Multiplier, ...] = field(default=())


RESIDUAL_WRITERS = r".*\.\d+\..*\.(o_proj|out_proj|down_proj|fc2)\.(weight|bias)"  # what blocks add to the stream

# Relative positions that a projection reads: sinusoids of the width, whose old frequencies are among the new ones.
SINES_THEN_COSINES, SINES_AND_COSINES = "2 frequencies_hidden", "frequencies_hidden 2"


def _detr(*readers: str) -> Override:
    """Positions in two dimensions that are added to the input of `readers` (regular expressions on the
    path).
    """
    return Override(layouts=tuple((reader, "in", SINES_AND_COSINES) for reader in readers), paired=True)


def _scaled_head(when: str) -> Override:
    """The input of the head is multiplied by d_model ** -0.5 if `when` is true, so that it can be a tied
    embedding.
    """
    return Override(multipliers=(Multiplier(r"lm_head\.weight", "d_model", -0.5, when=when),))


ENCODER_QUERIES = r"encoder\.layers\.\d+\.self_attn\.[qk]_proj"

OVERRIDES: Mapping[str, Override] = {
    "aimv2_vision_model": Override(layouts=((r"head\.cls_token", "out", "heads head_dim"),)),  # a query as it is
    "codegen": Override(  # four parts of the heads, each [query, value, key]
        layouts=(
            (r"attn\.qkv_proj", "out", "4 3 over4_kv_heads head_dim"),
            (r"attn\.out_proj", "in", "4 over4_kv_heads head_dim"),
        )
    ),
    "convbert": Override(layouts=((r"attention\.output\.dense\.weight", "in", "2 over2_kv_heads head_dim"),)),
    "conditional_detr": _detr(ENCODER_QUERIES, r"encoder_attn\.(k_pos|q_pos_sine)_proj"),
    "cvt": Override(multipliers=(Multiplier(r".*\.projection_query\.(weight|bias)", "embed_dim.0", -0.5),)),
    "dab-detr": Override(
        layouts=(
            (ENCODER_QUERIES, "in", SINES_AND_COSINES),
            (r"cross_attn_(key_pos|query_pos_sine)_proj", "in", SINES_AND_COSINES),
            (r"ref_point_head\.layers\.0", "in", f"2 {SINES_AND_COSINES}"),  # of place and size
        ),
        paired=True,
    ),
    "deformable_detr": _detr(r"encoder\.layers\.\d+\.self_attn\.(sampling_offsets|attention_weights)"),
    "detr": _detr(ENCODER_QUERIES, r"encoder_attn\.k_proj"),
    "diffllama": Override(  # heads in two halves whose difference is taken
        layouts=(
            (r"self_attn\.q_proj", "out", "2 over2_kv_heads group head_dim"),
            (r"self_attn\.[kv]_proj", "out", "2 over2_kv_heads head_dim"),
            (r"self_attn\.o_proj", "in", "over2_kv_heads group 2 head_dim"),
        ),
        roles=((r".*\.lambda_q[12]", ("write",)), (r".*\.lambda_k[12]", ("read",))),  # contracted with each other
        numbered=True,  # lambda_init
    ),
    **dict.fromkeys(("eomt", "eomt_dinov3", "videomt"), Override(shares=((r"(.*\.)?attn_mask_probs", "last"),))),
    "gpt_neo": Override(unscaled=True),
    "esmc": Override(multipliers=(Multiplier(RESIDUAL_WRITERS, "num_hidden_layers", -0.5),)),
    "minicpm3": Override(multipliers=(Multiplier(RESIDUAL_WRITERS, "num_hidden_layers", -0.5),)),
    "funnel": Override(layouts=((r"r_kernel", "in", SINES_THEN_COSINES),)),
    **dict.fromkeys(
        ("inkling2_text", "inkling2_loop_text"),
        Override(multipliers=(Multiplier(r".*\.query", "hidden_size", -0.5),)),
    ),
    "layoutlmv3": Override(concatenated="coordinate_size"),  # left, top, right, bottom, height and width of a word
    "llama4_vision_model": Override(layouts=((r"vision_adapter\.mlp\.fc1", "in", "4 over4_ffn"),)),  # four patches
    "longcat_flash": Override(multipliers=(Multiplier(r".*\.(q|kv)_b_proj\.weight", "hidden_size", 0.5),)),
    "mobilebert": Override(transposed=r"cls\.predictions\.dense"),
    "neomme": Override(transposed=r"unembedding_projection"),
    "mpt": Override(alibi="attn_config.alibi"),
    "bloom": Override(alibi=True),
    "falcon": Override(alibi="alibi"),
    "patchtsmixer": Override(  # a softmax over the width, whose shares are smaller in a wider network
        multipliers=(
            Multiplier(r".*feature_mixer\.mlp\.fc2\.(weight|bias)", "d_model", -1.0),
            Multiplier(r".*feature_mixer\.gating_block\.attn_layer\.weight", "d_model", 1.0),
        )
    ),
    "reformer": Override(concatenated="axial_pos_embds_dim"),
    "rf_detr": Override(
        layouts=(
            (r"ref_point_head\.layers\.0", "in", f"2 {SINES_AND_COSINES}"),  # of place and size
            (r"projector_layer\.conv1\.(conv|norm)", "out", "2 over2_hidden"),  # split in two
        )
    ),
    "swiftformer": Override(  # queries and keys of unit norm, scores times dim ** -0.5
        multipliers=(
            Multiplier(r".*\.w_g", "embed_dims.0", -1.0),
            Multiplier(r".*\.attn\.(proj|final)\.weight", "embed_dims.0", -0.5),
            Multiplier(r".*\.attn\.proj\.bias", "embed_dims.0", 0.5),
        )
    ),
    "table-transformer": _detr(ENCODER_QUERIES, r"encoder_attn\.k_proj"),
    **dict.fromkeys(("t5", "umt5", "longt5", "pop2piano"), _scaled_head("scale_decoder_outputs")),
    **dict.fromkeys(("switch_transformers", "udop"), _scaled_head("tie_word_embeddings")),
    "wav2vec2-conformer": Override(layouts=((r"linear_pos", "in", SINES_AND_COSINES),)),
    "xlnet": Override(
        layouts=(
            (r"rel_attn\.r$", "in", SINES_THEN_COSINES),
            (r"rel_attn\.[qkvr]$", "out", "heads"),
            (r"rel_attn\.[qkvr]$", "out", "head_dim"),
            (r"rel_attn\.o$", "in", "heads"),
            (r"rel_attn\.o$", "in", "head_dim"),
        )
    ),
    "yolos": Override(shares=((r".*\.mid_position_embeddings", "between"),)),
    "zamba": Override(  # each unit's state and gate side by side
        layouts=(
            (r"mamba\.in_proj", "out", "ssm_heads 2 ssm_head_dim 2"),
            (r"mamba\.conv1d", "out", "ssm_heads 2 ssm_head_dim"),
            (r"mamba\.out_proj", "in", "ssm_heads 2 ssm_head_dim"),
        )
    ),
    "zaya": Override(  # the value heads are half of the present token, half of the one before
        layouts=(
            (r"q_proj", "out", "2 over2_kv_heads group head_dim"),
            (r"k_proj", "out", "2 over2_kv_heads head_dim"),
            (r"conv_qk_(depthwise|grouped)", "out", "2 over2_kv_heads group head_dim + 2 over2_kv_heads head_dim"),
            (r"qk_norm\.temp", "out", "2 over2_kv_heads"),
            (r"o_proj", "in", "2 over2_kv_heads group head_dim"),
        )
    ),
}
