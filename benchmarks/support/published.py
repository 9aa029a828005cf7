"""Rungs of public families: the sizes in their configs, as published.

A family is (model class, model type, divisor of widths, divisor of layers, entries that all rungs share, {rung: entries}).
Entries that are widths or depths are divided when a rung is built small; numbers of heads stay.
"""

from __future__ import annotations

from typing import Any

WIDTHS = (
    "hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "d_ff", "head_dim", "d_kv", "word_embed_proj_dim",
    "query_pre_attn_scalar", "encoder_ffn_dim", "decoder_ffn_dim", "projection_size", "projection_dim",
)  # fmt: skip
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
VOCABULARY, POSITIONS = 512, 64
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WHISPER = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": POSITIONS, "decoder_start_token_id": 3,
           "suppress_tokens": None, "begin_suppress_tokens": None}  # fmt: skip
IMAGES = {"image_size": 16, "patch_size": 4, "num_labels": 10}


def llama(
    hidden: int, heads: int, kv_heads: int, ffn: int, layers: int, head_dim: int | None = None, **more: Any
) -> dict:
    """The entries of a config with Llama's names."""
    head = {"head_dim": head_dim or hidden // heads}
    return {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": ffn,
            "num_hidden_layers": layers, **head, **more}  # fmt: skip


def bert(hidden: int, heads: int, layers: int, **more: Any) -> dict:
    """The entries of a config with BERT's names."""
    return {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": 4 * hidden, "num_hidden_layers": layers,
            **more}  # fmt: skip


def gpt2(hidden: int, heads: int, layers: int) -> dict:
    return {"n_embd": hidden, "n_head": heads, "n_layer": layers}


def opt(hidden: int, heads: int, layers: int) -> dict:
    return {"hidden_size": hidden, "num_attention_heads": heads, "num_hidden_layers": layers, "ffn_dim": 4 * hidden,
            "word_embed_proj_dim": hidden}  # fmt: skip


def t5(hidden: int, heads: int, head_dim: int, ffn: int, layers: int) -> dict:
    return {"d_model": hidden, "num_heads": heads, "d_kv": head_dim, "d_ff": ffn, "num_layers": layers,
            "num_decoder_layers": layers}  # fmt: skip


def whisper(hidden: int, heads: int, layers: int) -> dict:
    return {"d_model": hidden, "encoder_attention_heads": heads, "decoder_attention_heads": heads, "encoder_layers": layers,
            "decoder_layers": layers, "encoder_ffn_dim": 4 * hidden, "decoder_ffn_dim": 4 * hidden}  # fmt: skip


def plain(hidden: int, layers: int) -> dict:
    return {"hidden_size": hidden, "num_hidden_layers": layers}


def bloom(hidden: int, heads: int, layers: int) -> dict:
    return {"hidden_size": hidden, "n_head": heads, "n_layer": layers}


def tower(hidden: int, heads: int, layers: int, ffn: int | None = None) -> dict:
    """One of the two networks of a CLIP or a SigLIP."""
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": ffn or 4 * hidden,
    }


def towers(text: dict, vision: dict, projection: int | None = None) -> dict:
    """A whole CLIP or SigLIP: the text tower of a SigLIP gives out what is as wide as the other."""
    space = {"projection_dim": projection} if projection else {"projection_size": vision["hidden_size"]}
    images = {"image_size": 16, "patch_size": 4}
    nested = {"text_config": {**TOKENS, **text, **space}, "vision_config": {**images, **vision}}
    return {**nested, "projection_dim": projection} if projection else nested


Family = tuple[str, str, int, int, dict, dict[str, dict]]

FAMILIES: dict[str, Family] = {
    "GPT-2": ("GPT2LMHeadModel", "gpt2", 16, 6, TOKENS, {
        "124M": gpt2(768, 12, 12), "355M": gpt2(1024, 16, 24), "774M": gpt2(1280, 20, 36), "1.5B": gpt2(1600, 25, 48)}),
    "Pythia": ("GPTNeoXForCausalLM", "gpt_neox", 4, 6, {"rotary_pct": 0.25, **TOKENS}, {
        "70M": bert(512, 8, 6), "160M": bert(768, 12, 12), "410M": bert(1024, 16, 24), "1B": bert(2048, 8, 16),
        "1.4B": bert(2048, 16, 24), "2.8B": bert(2560, 32, 32), "6.9B": bert(4096, 32, 32)}),
    "OPT": ("OPTForCausalLM", "opt", 16, 6, TOKENS, {
        "125M": opt(768, 12, 12), "1.3B": opt(2048, 32, 24), "2.7B": opt(2560, 32, 32), "6.7B": opt(4096, 32, 32),
        "13B": opt(5120, 40, 40)}),
    "BLOOM": ("BloomForCausalLM", "bloom", 16, 6, TOKENS, {
        "560M": bloom(1024, 16, 24), "1.1B": bloom(1536, 16, 24), "1.7B": bloom(2048, 16, 24), "3B": bloom(2560, 32, 30),
        "7.1B": bloom(4096, 32, 30)}),
    "Llama 3": ("LlamaForCausalLM", "llama", 16, 8, {**TOKENS, "rms_norm_eps": 1e-5}, {
        "1B": llama(2048, 32, 8, 8192, 16, tie_word_embeddings=True), "3B": llama(3072, 24, 8, 8192, 28, tie_word_embeddings=True),
        "8B": llama(4096, 32, 8, 14336, 32), "70B": llama(8192, 64, 8, 28672, 80)}),
    "SmolLM2": ("LlamaForCausalLM", "llama", 8, 6, {**TOKENS, "tie_word_embeddings": True}, {
        "135M": llama(576, 9, 3, 1536, 30), "360M": llama(960, 15, 5, 2560, 32), "1.7B": llama(2048, 32, 32, 8192, 24)}),
    "Qwen2.5": ("Qwen2ForCausalLM", "qwen2", 16, 8, TOKENS, {
        "0.5B": llama(896, 14, 2, 4864, 24, tie_word_embeddings=True), "1.5B": llama(1536, 12, 2, 8960, 28, tie_word_embeddings=True),
        "3B": llama(2048, 16, 2, 11008, 36, tie_word_embeddings=True), "7B": llama(3584, 28, 4, 18944, 28),
        "14B": llama(5120, 40, 8, 13824, 48), "32B": llama(5120, 40, 8, 27648, 64), "72B": llama(8192, 64, 8, 29568, 80)}),
    "Qwen3": ("Qwen3ForCausalLM", "qwen3", 16, 8, TOKENS, {
        "0.6B": llama(1024, 16, 8, 3072, 28, 128, tie_word_embeddings=True),
        "1.7B": llama(2048, 16, 8, 6144, 28, 128, tie_word_embeddings=True),
        "4B": llama(2560, 32, 8, 9728, 36, 128, tie_word_embeddings=True), "8B": llama(4096, 32, 8, 12288, 36, 128),
        "14B": llama(5120, 40, 8, 17408, 40, 128), "32B": llama(5120, 64, 8, 25600, 64, 128)}),
    "Gemma": ("GemmaForCausalLM", "gemma", 32, 8, TOKENS, {
        "2B": llama(2048, 8, 1, 16384, 18, 256), "7B": llama(3072, 16, 16, 24576, 28, 256)}),
    "Gemma 2": ("Gemma2ForCausalLM", "gemma2", 32, 8, {**TOKENS, "query_pre_attn_scalar": 256}, {
        "2B": llama(2304, 8, 4, 9216, 26, 256), "9B": llama(3584, 16, 8, 14336, 42, 256)}),
    "Gemma 3": ("Gemma3ForCausalLM", "gemma3_text", 8, 6, {**TOKENS, "query_pre_attn_scalar": 256}, {
        "270M": llama(640, 4, 1, 2048, 18, 256), "1B": llama(1152, 4, 1, 6912, 26, 256), "4B": llama(2560, 8, 4, 10240, 34, 256),
        "12B": llama(3840, 16, 8, 15360, 48, 256), "27B": llama(5376, 32, 16, 21504, 62, 128)}),
    "OLMo 2": ("Olmo2ForCausalLM", "olmo2", 16, 8, TOKENS, {
        "1B": llama(2048, 16, 16, 8192, 16), "7B": llama(4096, 32, 32, 11008, 32), "13B": llama(5120, 40, 40, 13824, 40),
        "32B": llama(5120, 40, 8, 27648, 64)}),
    "Granite 3": ("GraniteForCausalLM", "granite", 16, 10, {
        **TOKENS, "tie_word_embeddings": True, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}, {
        "2B": llama(2048, 32, 8, 8192, 40, attention_multiplier=0.015625, logits_scaling=8.0),
        "8B": llama(4096, 32, 8, 12800, 40, attention_multiplier=0.0078125, logits_scaling=16.0)}),
    "Falcon 3": ("LlamaForCausalLM", "llama", 32, 6, TOKENS, {
        "1B": llama(2048, 8, 4, 8192, 18, 256), "3B": llama(3072, 12, 4, 9216, 22, 256), "7B": llama(3072, 12, 4, 23040, 28, 256),
        "10B": llama(3072, 12, 4, 23040, 40, 256)}),
    "Phi": ("PhiForCausalLM", "phi", 8, 8, TOKENS, {
        "1.5": bert(2048, 32, 24, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}),
        "2": bert(2560, 32, 32, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4})}),
    "StarCoder2": ("Starcoder2ForCausalLM", "starcoder2", 16, 8, TOKENS, {
        "3B": llama(3072, 24, 2, 12288, 30), "7B": llama(4608, 36, 4, 18432, 32), "15B": llama(6144, 48, 4, 24576, 40)}),
    "Mamba": ("MambaForCausalLM", "mamba", 16, 12, {**TOKENS, "state_size": 16}, {
        "130M": plain(768, 24), "370M": plain(1024, 48), "790M": plain(1536, 48), "1.4B": plain(2048, 48), "2.8B": plain(2560, 64)}),
    "T5": ("T5ForConditionalGeneration", "t5", 16, 6, {"decoder_start_token_id": 0}, {
        "small": t5(512, 8, 64, 2048, 6), "base": t5(768, 12, 64, 3072, 12), "large": t5(1024, 16, 64, 4096, 24),
        "3B": t5(1024, 32, 128, 16384, 24), "11B": t5(1024, 128, 128, 65536, 24)}),
    "ViT": ("ViTForImageClassification", "vit", 16, 6, IMAGES, {
        "Ti": bert(192, 3, 12), "S": bert(384, 6, 12), "B": bert(768, 12, 12), "L": bert(1024, 16, 24), "H": bert(1280, 16, 32)}),
    "DINOv2": ("Dinov2ForImageClassification", "dinov2", 16, 6, {"image_size": 16, "patch_size": 4, "num_labels": 10}, {
        "S": bert(384, 6, 12), "B": bert(768, 12, 12), "L": bert(1024, 16, 24)}),
    "BERT": ("BertForMaskedLM", "bert", 16, 2, {"pad_token_id": 0}, {
        "tiny": bert(128, 2, 2), "mini": bert(256, 4, 4), "small": bert(512, 8, 4), "medium": bert(512, 8, 8),
        "base": bert(768, 12, 12), "large": bert(1024, 16, 24)}),
    "RoBERTa": ("RobertaForMaskedLM", "roberta", 16, 6, {**TOKENS, "layer_norm_eps": 1e-5}, {"base": bert(768, 12, 12), "large": bert(1024, 16, 24)}),
    "CLIP text": ("CLIPTextModel", "clip_text_model", 8, 6, TOKENS, {
        "B": tower(512, 8, 12), "L": tower(768, 12, 12), "H": tower(1024, 16, 24), "bigG": tower(1280, 20, 32)}),
    "CLIP vision": ("CLIPVisionModel", "clip_vision_model", 8, 6, {"image_size": 16, "patch_size": 4}, {
        "B": tower(768, 12, 12), "L": tower(1024, 16, 24), "H": tower(1280, 16, 32), "bigG": tower(1664, 16, 48, 8192)}),
    "SigLIP text": ("SiglipTextModel", "siglip_text_model", 8, 6, TOKENS, {
        "B": tower(768, 12, 12), "L": tower(1024, 16, 24), "So400m": tower(1152, 16, 27, 4304)}),
    "SigLIP vision": ("SiglipVisionModel", "siglip_vision_model", 8, 6, {"image_size": 16, "patch_size": 4}, {
        "B": tower(768, 12, 12), "L": tower(1024, 16, 24), "So400m": tower(1152, 16, 27, 4304)}),
    "CLIP": ("CLIPModel", "clip", 8, 6, {}, {
        "B": towers(tower(512, 8, 12), tower(768, 12, 12), 512), "L": towers(tower(768, 12, 12), tower(1024, 16, 24), 768),
        "H": towers(tower(1024, 16, 24), tower(1280, 16, 32), 1024),
        "bigG": towers(tower(1280, 20, 32), tower(1664, 16, 48, 8192), 1280)}),
    "SigLIP": ("SiglipModel", "siglip", 8, 6, {}, {
        "B": towers(tower(768, 12, 12), tower(768, 12, 12)), "L": towers(tower(1024, 16, 24), tower(1024, 16, 24)),
        "So400m": towers(tower(1152, 16, 27, 4304), tower(1152, 16, 27, 4304))}),
    "Whisper": ("WhisperForConditionalGeneration", "whisper", 16, 4, {**TOKENS, **WHISPER}, {
        "tiny": whisper(384, 6, 4), "base": whisper(512, 8, 6), "small": whisper(768, 12, 12), "medium": whisper(1024, 16, 24)}),
}  # fmt: skip


def _divided(entries: dict, width: int, depth: int) -> dict:
    """The entries with widths and depths divided, also those of nested configs."""
    entries = {
        name: _divided(value, width, depth) if isinstance(value, dict) else value for name, value in entries.items()
    }
    entries |= {name: -(-entries[name] // depth) for name in DEPTHS if name in entries}
    return entries | {name: entries[name] // width for name in WIDTHS if name in entries}


def small_config(family: str, rung: str) -> Any:
    """The transformers config of a rung with its widths and depths divided."""
    import transformers

    _, model_type, width, depth, shared, rungs = FAMILIES[family]
    entries = {**shared, **rungs[rung]}
    if model_type == "siglip_text_model":  # the width of what it gives out
        entries["projection_size"] = entries["hidden_size"]
    entries = _divided(entries, width, depth)
    known = transformers.AutoConfig.for_model(model_type)
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "n_positions": POSITIONS}
    entries |= {name: size for name, size in sizes.items() if hasattr(known, name)}
    if model_type in ("bert", "roberta", "vit", "dinov2", "gpt_neox", "phi"):
        entries.pop("head_dim", None)
    if "text_config" in entries:
        entries["text_config"] |= {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS}
    return transformers.AutoConfig.for_model(model_type, **entries)
