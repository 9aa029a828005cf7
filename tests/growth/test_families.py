"""Every family, tied and untied: cloned x2 it computes the same function, and again when stock transformers reloads it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pico
import pytest
import torch

import meristem as ms
from meristem.anatomy.inputs import example_inputs, logits_of

# Architectures that compute in the dtype of their weights throughout; the others keep norms or rotary tables in float32.
FLOAT64 = {"gpt2", "opt", "opt_projected", "bloom", "bert", "roberta", "bart", "vit", "gpt_neox",
           "falcon", "falcon_mha", "falcon_new", "falcon_alibi"}  # fmt: skip
ALWAYS_TIED = {"t5", "t5_gated"}  # transformers 5.23 ties T5 whatever its config says
CASES = [
    (family, tied)
    for family in pico.FAMILIES
    for tied in ((None,) if family in {"vit"} | ALWAYS_TIED else (True, False))
]


def build(family: str, tied: bool | None) -> torch.nn.Module:
    return pico.build(family, **({} if tied is None else {"tie_word_embeddings": tied}))


def relative_error(small: torch.nn.Module, big: torch.nn.Module) -> float:
    inputs = example_inputs(small)
    a, b = logits_of(small, inputs), logits_of(big, inputs)
    assert a.shape == b.shape
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("family, tied", CASES)
def test_cloning_keeps_the_function_in_float32(family, tied):
    small = build(family, tied)
    big = ms.grow(small, ms.HyperCloning(width=2, noise=0.3))
    assert relative_error(small, big) <= 1e-5
    assert type(big) is type(small)
    assert {p.dtype for p in big.parameters()} == {torch.float32}
    assert sum(p.numel() for p in big.parameters()) > 1.7 * sum(p.numel() for p in small.parameters())
    if tied is not None:
        assert big.config.tie_word_embeddings == tied


@pytest.mark.parametrize("family", sorted(FLOAT64))
def test_cloning_keeps_the_function_in_float64(family):
    small = build(family, None).double()
    assert relative_error(small, ms.grow(small, ms.HyperCloning(width=2, noise=0.3), verify=False)) <= 1e-10


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "t5", "bert"])
def test_a_triple_and_an_untied_head(family):
    small = pico.build(family)
    assert relative_error(small, ms.grow(small, ms.HyperCloning(width=3))) <= 1e-5
    if family not in ALWAYS_TIED:
        untied = ms.grow(small, ms.HyperCloning(width=2, tied="untie"))
        assert relative_error(small, untied) <= 1e-5
        assert not untied.config.tie_word_embeddings or not small.config.tie_word_embeddings


@pytest.mark.parametrize("factors", [
    {"intermediate_size": 132}, {"hidden_size": 96}, {"num_attention_heads": 8},
    {"num_attention_heads": 8, "num_key_value_heads": 2}, {"num_attention_heads": 4, "num_key_value_heads": 2, "width": 2},
    {"hidden_size": 64, "intermediate_size": 88, "num_attention_heads": 12, "num_key_value_heads": 6},
])  # fmt: skip
def test_axes_grow_one_by_one(factors):
    small = pico.build("qwen3")
    big = ms.grow(small, ms.HyperCloning(**factors, noise=0.2))
    assert relative_error(small, big) <= 1e-5
    for name, size in factors.items():
        assert name == "width" or getattr(big.config, name) == size


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_and_is_judged_in_high_precision(family, dtype):
    from meristem.growth import Growth

    growth = Growth.of(pico.build(family).to(dtype), ms.HyperCloning(width=2, noise=0.2))
    assert {p.dtype for p in growth.model.parameters()} == {dtype}
    assert growth.certificate is not None
    assert growth.certificate.holds
    assert growth.certificate.stored_dtype == str(dtype).removeprefix("torch.")
    assert growth.certificate.holds_as_stored or growth.certificate.unrounded_relative_error <= 1e-5
    assert growth.certificate == replace(
        ms.verify(growth.source, growth.model),
        unrounded_relative_error=growth.certificate.unrounded_relative_error,
        unrounded_tolerance=growth.certificate.unrounded_tolerance,
    )


def test_the_source_is_left_as_it_is():
    small = pico.build("gpt2")
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    config = small.config.to_dict()
    ms.grow(small, ms.HyperCloning(width=2, noise=0.3))
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    assert small.config.to_dict() == config
    assert not small.training


RELOAD = """
import json, sys
import torch, transformers
from safetensors.torch import load_file
worst = {}
for case in json.load(open(sys.argv[1])):
    model, info = getattr(transformers, case["class"]).from_pretrained(case["path"], output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], (case, info)
    stored = load_file(case["expected"])
    with torch.no_grad():
        logits = model.eval()(**{k: v for k, v in stored.items() if k != "logits"}).logits
    worst[case["path"]] = float((logits - stored["logits"]).abs().max() / stored["logits"].abs().max())
assert not any(name.startswith("meristem") for name in sys.modules)
print(json.dumps(worst))
"""


def test_stock_transformers_reloads_every_family(tmp_path):
    """In a process that never imports meristem."""
    from safetensors.torch import save_file

    cases = []
    for family, tied in CASES:
        small = build(family, tied)
        path = tmp_path / f"{family}-{tied}"
        ms.grow(small, ms.HyperCloning(width=2, noise=0.3), verify=False).save_pretrained(path)
        inputs = example_inputs(small)
        save_file({**inputs, "logits": logits_of(small, inputs).contiguous()}, path / "expected.st")
        cases.append({"class": type(small).__name__, "path": str(path), "expected": str(path / "expected.st")})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-c", RELOAD, str(tmp_path / "cases.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == len(CASES)
    assert max(errors.values()) <= 1e-5, errors
