"""The mixture of experts that each dense family becomes, as data. Everything else is found by comparing both
networks.

One row holds what neither names nor shapes show: the class, the config fields that count experts, how the
router's weights are normalised, and where the two classes have different names for the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Mixture:
    """One row.

    Attributes:
        model_type: the model type of the mixture.
        prefix: (that of the dense classes, that of the mixture's), as in LlamaForCausalLM and
            MixtralForCausalLM.
        experts: the config field with the number of experts.
        per_token: the config field with the number of experts of a token. "" if it is always one.
        ffn: the field with the feed-forward units of an expert.
        normalises: whether the weights of the chosen experts sum to one: "always", "never", or the field that
            says so.
        shared: the field with the units of a shared expert. "" if there is none.
        every: the field that says that every n-th layer has experts. "" if all have.
        sparse_layers: fields that count layers with experts instead, with the field that counts all layers.
        renamed: {in the dense network: in the mixture}, parts of names.
        derived: {entry of the mixture's config: the entry of the dense config from which it is set}.
        fields: further entries.
    """

    model_type: str
    prefix: tuple[str, str]
    experts: str = "num_experts"
    per_token: str = "num_experts_per_tok"
    ffn: str = "intermediate_size"
    normalises: Literal["always", "never"] | str = "always"
    shared: str = ""
    every: str = ""
    sparse_layers: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


MOE_FFN, SHARED_FFN = "moe_intermediate_size", "shared_expert_intermediate_size"

MIXTURES: Mapping[str, Mixture] = {
    "llama": Mixture("mixtral", ("Llama", "Mixtral"), "num_local_experts"),
    "mistral": Mixture("mixtral", ("Mistral", "Mixtral"), "num_local_experts"),
    "qwen2": Mixture(
        "qwen2_moe",
        ("Qwen2", "Qwen2Moe"),
        ffn=MOE_FFN,
        normalises="norm_topk_prob",
        shared=SHARED_FFN,
        every="decoder_sparse_step",
    ),
    "qwen3": Mixture(
        "qwen3_moe", ("Qwen3", "Qwen3Moe"), ffn=MOE_FFN, normalises="norm_topk_prob", every="decoder_sparse_step"
    ),
    "olmo2": Mixture("flex_olmo", ("Olmo2", "FlexOlmo"), normalises="norm_topk_prob"),
    "granite": Mixture(
        "granitemoe", ("Granite", "GraniteMoe"), "num_local_experts", renamed={".mlp.": ".block_sparse_moe."}
    ),
    "t5": Mixture(
        "switch_transformers",
        ("T5", "SwitchTransformers"),
        per_token="",
        ffn="d_ff",
        normalises="never",
        sparse_layers={"num_sparse_encoder_layers": "num_layers", "num_sparse_decoder_layers": "num_decoder_layers"},
        renamed={".DenseReluDense.": ".mlp."},
        derived={
            "tie_word_embeddings": "scale_decoder_outputs"
        },  # Switch scales what a tied head reads, and nothing else
        fields={"expert_capacity": 1 << 20},  # no token of a sequence is dropped
    ),
}
