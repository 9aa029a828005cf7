"""A fast part of the sweep over the registry (`benchmarks/architectures.py`): one class for each thing that inference can do."""

from __future__ import annotations

import architectures
import pytest
import transformers
from support.auto_classes import auto_classes

import meristem as ms
from meristem.anatomy.overrides import OVERRIDES
from meristem.growth.proofs.trial import first_parting
from meristem.growth.settle import settle
from meristem.growth.tensors.build import build

TYPES = {entry.name: entry.model_type for entry in auto_classes()}


@pytest.mark.parametrize("name", [
    "DeepseekV3ForCausalLM",  # multi-latent attention, routed and shared experts after dense layers
    "GptOssForCausalLM",  # transposed experts, gate and up side by side
    "Qwen3NextForCausalLM",  # gated linear attention with key groups
    "Mamba2ForCausalLM",  # state-space heads
    "BambaForCausalLM",  # both, in turn
    "DebertaForMaskedLM",  # heads outermost in a fused matrix, found by trial
    "LongT5ForConditionalGeneration",  # a factor of the width before the head, found by trial
    "RecurrentGemmaForCausalLM",  # a constant rounded to half precision, a second width
    "SqueezeBertForMaskedLM",  # convolutions in groups
    "SwinModel",  # stages that double the width, windows that are shifted by the layer's number, no head
    "ConvNextForImageClassification",  # stages with widths of their own
    "GPTNeoXJapaneseForCausalLM",  # a bias in the last layer only
    "EsmForMaskedLM",  # a dimension outside the blocks with a share for each of them
    "XLNetLMHeadModel",  # sinusoidal relative positions that a projection reads
    "ReformerForMaskedLM",  # a stream of parts side by side
    "MobileBertForMaskedLM",  # blocks narrower than the stream, a head of two matrices
    "WavLMForSequenceClassification",  # heads of the stream itself, a weight-normed convolution whose groups grow along
    "Zamba2ForCausalLM",  # blocks that share weights: silent layers of one kind only
    "BitForImageClassification",  # groups of channels under one norm
    "T5Gemma2ForConditionalGeneration",  # encoder and decoder in configs of their own
    "NeoMMEForMaskedLM",  # a transposed tied projection, exceptions for single layers
    "SiglipModel",  # two encoders, attention pooling
    "Qwen3VLForConditionalGeneration",  # images and videos in the text, taken in by layers by their numbers
    "ColQwen2ForRetrieval",  # a language model within a composite within a composite
    "ParakeetForCTC",  # a factor of the width behind a bias, sinusoids that a projection reads
    "LayoutLMv3ForTokenClassification",  # boxes: six coordinates side by side
    "PatchTSTModel",  # a series
    "VitPoseBackbone",  # outputs taken behind some layers
])  # fmt: skip
def test_grows_and_reloads(name):
    row = architectures.examine(name, TYPES[name])
    assert row["outcome"] == "pass", row


def test_the_trial_names_where_two_networks_part(monkeypatch):
    monkeypatch.delitem(OVERRIDES, "longt5")  # a factor that nobody has written down
    model, inputs = architectures.tiny_model("longt5", "LongT5ForConditionalGeneration")
    anatomy = ms.Anatomy.of(model)
    plan = ms.HyperCloning(width=2).plan(anatomy, model)
    parting = first_parting(plan, model, build(plan, model).eval(), inputs)
    assert parting is not None
    assert (parting.module, parting.side) == ("lm_head", "output")
    assert parting.ratio == pytest.approx(2**-0.5, rel=1e-3)
    settled, still = settle(anatomy, model, inputs)
    assert still is None
    assert [m.exponent for m in settled.override.multipliers] == [pytest.approx(-0.5, abs=1e-3)]


@pytest.mark.parametrize("sizes", [{"head_dim": 16}, {"sizes": {"head_dim": 16}}])
def test_a_head_dim_that_no_tensor_has_is_refused(sizes):
    """DeepSeek's is the length of its rotary tables; the growth was made, and did not run."""
    entries = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
               "num_experts_per_tok": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
               "v_head_dim": 8, "first_k_dense_replace": 1}  # fmt: skip
    small = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**entries)).eval()
    with pytest.raises(
        ms.MeristemError,
        match="no tensor of deepseek_v3 has head_dim units, so it cannot change; asked for 16, found 8",
    ):
        ms.grow(small, ms.LEMON(**sizes))
    assert ms.Growth.of(small, ms.LEMON(num_attention_heads=8)).certificate.holds
