"""A fast part of the sweep over the registry (`benchmarks/architectures.py`): one type for each thing that inference can do."""

from __future__ import annotations

import architectures
import pytest

import meristem as ms
from meristem.growth.build import build
from meristem.growth.settle import settle
from meristem.growth.trial import first_parting

CLASSES = {model_type: class_name for _, model_type, class_name in reversed(architectures.registry())}


@pytest.mark.parametrize("model_type", [
    "deepseek_v3",  # multi-latent attention, routed and shared experts after dense layers
    "gpt_oss",  # transposed experts, gate and up side by side
    "qwen3_next",  # gated linear attention with key groups
    "mamba2",  # state-space heads
    "bamba",  # both, in turn
    "deberta",  # heads outermost in a fused matrix, found by trial
    "longt5",  # a factor of the width before the head, found by trial
    "recurrent_gemma",  # a constant rounded to half precision, a second width
    "squeezebert",  # convolutions in groups
    "swin",  # stages that double the width
    "convnext",  # stages with widths of their own
    "gpt_neox_japanese",  # a bias in the last layer only
    "esm",  # a dimension outside the blocks with a share for each of them
    "xlnet",  # sinusoidal relative positions that a projection reads
    "reformer",  # a stream of parts side by side
    "mobilebert",  # blocks narrower than the stream, a head of two matrices
    "wavlm",  # heads of the stream itself, a weight-normed convolution whose groups grow along
    "zamba2",  # blocks that share weights: silent layers of one kind only
    "bit",  # groups of channels under one norm
    "t5gemma2",  # encoder and decoder in configs of their own
    "neomme",  # a transposed tied projection, exceptions for single layers
])  # fmt: skip
def test_grows_and_reloads(model_type):
    row = architectures.examine(model_type, CLASSES[model_type])
    assert row["outcome"] == "pass", row


def test_the_trial_names_where_two_networks_part():
    model, inputs = architectures.tiny_model("longt5", CLASSES["longt5"])
    anatomy = ms.Anatomy.of(model)
    plan = ms.HyperCloning(width=2).plan(anatomy, model)
    parting = first_parting(plan, model, build(plan, model).eval(), inputs)
    assert parting is not None
    assert (parting.module, parting.side) == ("lm_head", "output")
    assert parting.ratio == pytest.approx(2**-0.5, rel=1e-3)
    settled, still = settle(anatomy, model, inputs)
    assert still is None
    assert [m.exponent for m in settled.override.multipliers] == [pytest.approx(-0.5, abs=1e-3)]
