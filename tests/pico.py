"""Pico models: one tiny, fully randomised model for each family, built from its config and never downloaded."""

from __future__ import annotations

import torch

SMALL = {"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 44, "num_key_value_heads": 2, "max_position_embeddings": 64}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {**SMALL, "intermediate_size": 44, "max_position_embeddings": 64}

# family -> (model class, model_type, config entries)
FAMILIES: dict[str, tuple[str, str, dict]] = {
    "llama": ("LlamaForCausalLM", "llama", LLAMA),
    "mistral": ("MistralForCausalLM", "mistral", {**LLAMA, "head_dim": 8}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", LLAMA),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {**LLAMA, "head_dim": 8}),
    "gemma": ("GemmaForCausalLM", "gemma", {**LLAMA, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", {**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text", {**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3ForCausalLM", "phi3", {**LLAMA, **TOKENS}),
    "olmo2": ("Olmo2ForCausalLM", "olmo2", {**LLAMA, **TOKENS}),
    "gpt2": ("GPT2LMHeadModel", "gpt2", {"vocab_size": 67, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("GPTNeoXForCausalLM", "gpt_neox", {**SMALL, "intermediate_size": 44, "max_position_embeddings": 64}),
    "opt": ("OPTForCausalLM", "opt", {**SMALL, **TOKENS, "ffn_dim": 44, "max_position_embeddings": 64,
                                      "word_embed_proj_dim": 32}),
    "opt_projected": ("OPTForCausalLM", "opt", {**SMALL, **TOKENS, "ffn_dim": 44, "max_position_embeddings": 64,
                                                "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "bloom": ("BloomForCausalLM", "bloom", {"vocab_size": 67, "hidden_size": 32, "n_layer": 2, "n_head": 4, **TOKENS}),
    "falcon": ("FalconForCausalLM", "falcon", {**SMALL, **TOKENS}),
    "falcon_mha": ("FalconForCausalLM", "falcon", {**SMALL, **TOKENS, "multi_query": False, "bias": True}),
    "falcon_new": ("FalconForCausalLM", "falcon", {**SMALL, **TOKENS, "new_decoder_architecture": True,
                                                   "num_kv_heads": 2}),
    "falcon_alibi": ("FalconForCausalLM", "falcon", {**SMALL, **TOKENS, "alibi": True, "multi_query": False}),
    "mixtral": ("MixtralForCausalLM", "mixtral", {**LLAMA, "num_local_experts": 4}),
    "bert": ("BertForMaskedLM", "bert", BERT),
    "roberta": ("RobertaForMaskedLM", "roberta", {**BERT, **TOKENS}),
    "t5": ("T5ForConditionalGeneration", "t5", {"vocab_size": 67, "d_model": 32, "d_kv": 8, "d_ff": 44, "num_layers": 2,
                                                "num_decoder_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}),
    "t5_gated": ("T5ForConditionalGeneration", "t5", {"vocab_size": 67, "d_model": 32, "d_kv": 6, "d_ff": 44,
                                                      "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
                                                      "decoder_start_token_id": 0,
                                                      "feed_forward_proj": "gated-gelu"}),
    "bart": ("BartForConditionalGeneration", "bart", {"vocab_size": 67, "d_model": 32, "encoder_layers": 2,
                                                      "decoder_layers": 2, "encoder_attention_heads": 4,
                                                      "decoder_attention_heads": 8, "encoder_ffn_dim": 44,
                                                      "decoder_ffn_dim": 52, "max_position_embeddings": 64,
                                                      "scale_embedding": True}),
    "vit": ("ViTForImageClassification", "vit", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                                                 "intermediate_size": 44, "image_size": 16, "patch_size": 4,
                                                 "num_labels": 5}),
}  # fmt: skip

UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}


def build(family: str, seed: int = 0, **changes) -> torch.nn.Module:
    """The family's pico model in eval mode: every weight, bias and norm random, so that nothing hides behind a 1 or 0."""
    import transformers

    class_name, model_type, entries = FAMILIES[family]
    config = transformers.AutoConfig.for_model(model_type, **{**entries, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(config)
    randomise(model, seed)
    return model.eval()


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Fresh random values everywhere; matrices keep a scale at which logits are of order one."""
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        if parameter.dim() == 1:
            parameter.data += 0.3 * noise
        else:
            parameter.data = noise * parameter.shape[-1] ** -0.5
