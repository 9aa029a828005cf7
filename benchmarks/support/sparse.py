"""Checkpoints of published shapes that weigh next to nothing on disk: real headers and indices, data that is a hole in the file.

What is read from a hole is zero. So everything that only asks for names, shapes and types (inspect, plan, grow --dry-run) does
the same work as on the real thing, and a disk of any size holds a terabyte of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def llama_70b() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"], hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip


def llama_405b() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"], hidden_size=16384, intermediate_size=53248, num_hidden_layers=126,
        num_attention_heads=128, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip


def qwen3_30b_a3b() -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"], hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
        num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128,
        num_experts_per_tok=8, vocab_size=151936, tie_word_embeddings=False,
    )  # fmt: skip


def deepseek_v3() -> Any:
    from transformers import DeepseekV3Config

    return DeepseekV3Config(architectures=["DeepseekV3ForCausalLM"])  # the defaults are the published sizes


def kimi_k2() -> Any:
    from transformers import DeepseekV3Config

    return DeepseekV3Config(
        architectures=["DeepseekV3ForCausalLM"], vocab_size=163840, num_attention_heads=64, num_key_value_heads=64,
        n_routed_experts=384, n_group=1, topk_group=1, first_k_dense_replace=1, routed_scaling_factor=2.827,
    )  # fmt: skip


def llama_21b() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"], hidden_size=5120, intermediate_size=13824, num_hidden_layers=64,
        num_attention_heads=40, num_key_value_heads=40, vocab_size=32000, tie_word_embeddings=False,
    )  # fmt: skip


ONE_FILE = "Llama-21B in one file"  # of 41 GB, more than the memory of most machines
SHAPES: dict[str, Callable[[], Any]] = {
    "Llama-70B": llama_70b,
    "Qwen3-30B-A3B": qwen3_30b_a3b,
    ONE_FILE: llama_21b,
    "Llama-405B": llama_405b,
    "DeepSeek-V3": deepseek_v3,
    "Kimi-K2": kimi_k2,
}


def make_sparse(path: Path, config: Any, max_shard_size: str = "5GB") -> dict[str, int]:
    """A checkpoint in bfloat16 of the class that `config` names, laid out as stock `save_pretrained` would.

    Returns:
        parameters, tensors on disk, bytes and files.
    """
    import torch
    import transformers

    from meristem.checkpoints.stored import INDEX
    from meristem.checkpoints.write import plan_files
    from meristem.growth.tensors.build import skeleton

    config.dtype = "bfloat16"
    model = skeleton(lambda: getattr(transformers, config.architectures[0])(config)).to(torch.bfloat16)
    _, shards = plan_files(model, max_shard_size)
    path.mkdir(parents=True)
    config.save_pretrained(path)
    for file, header in shards.headers.items():
        with open(path / file, "wb") as stream:
            stream.write(header)
            os.ftruncate(stream.fileno(), shards.sizes[file])
    if len(shards.files) > 1:
        weight_map = {name: file for file, names in shards.files.items() for name in names}
        (path / INDEX).write_text(json.dumps({"metadata": {"total_size": shards.bytes}, "weight_map": weight_map}))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "tensors": len(shards.places), "bytes": shards.bytes, "files": len(shards.files)}
