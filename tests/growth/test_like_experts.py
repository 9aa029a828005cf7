"""Growing to a target with experts: more, wider, and of a dense network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pico
import pytest
import torch
import transformers
from command_line import meristem
from test_more_experts import qwen
from test_upcycle import dense, error, reloaded

import meristem as ms
from meristem.anatomy.streamed import weights_of
from meristem.checkpoints import open_streamed
from meristem.growth import Growth
from meristem.growth.like.config import like, rows

STORIES = Path(__file__).parents[3] / "shared/data/checkpoints/stories260K-llama"
# what -> (source, target's config, names of methods)
WIDE = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
CASES = {
    "more experts": (lambda: pico.build("mixtral"), lambda: pico.build(
        "mixtral", num_local_experts=8, num_experts_per_tok=4).config, "more_experts"),
    "more experts and everything else": (lambda: pico.build("mixtral"), lambda: pico.build(
        "mixtral", num_local_experts=8, num_experts_per_tok=4, intermediate_size=88, num_hidden_layers=3, vocab_size=80, **WIDE).config,
        "lemon more_experts"),
    "wider experts": (qwen, lambda: qwen(moe_intermediate_size=80).config, "lemon"),
    "wider and more, not renormalised": (lambda: qwen(norm_topk_prob=False), lambda: qwen(
        norm_topk_prob=False, moe_intermediate_size=80, num_experts=12, num_experts_per_tok=6, hidden_size=48).config, "lemon more_experts"),
    "Mixtral of a Llama": (lambda: dense("llama"), lambda: pico.build(
        "mixtral", intermediate_size=64, num_local_experts=8).config, "upcycle"),
    "Mixtral of a smaller Llama": (lambda: pico.build("llama", rms_norm_eps=1e-3, vocab_size=60), lambda: pico.build(
        "mixtral", intermediate_size=64, num_local_experts=8, num_hidden_layers=3, **WIDE, rms_norm_eps=1e-3).config, "lemon upcycle"),
    "granular": (lambda: pico.build("qwen3"), lambda: qwen(
        hidden_size=48, moe_intermediate_size=16, num_experts=16, num_experts_per_tok=8, norm_topk_prob=True).config, "lemon upcycle"),
    "not renormalised": (lambda: pico.build("qwen3"), lambda: qwen(norm_topk_prob=False, num_experts=8).config, "lemon upcycle"),
    "every second layer": (lambda: pico.build("qwen3", num_hidden_layers=4), lambda: qwen(
        num_hidden_layers=4, decoder_sparse_step=2, intermediate_size=48, norm_topk_prob=True).config, "lemon upcycle"),
    "a tied head to an untied one": (lambda: pico.build("llama", tie_word_embeddings=True), lambda: pico.build(
        "mixtral", tie_word_embeddings=False).config, "lemon upcycle"),
    "Switch of a T5": (lambda: pico.build("t5"), lambda: transformers.SwitchTransformersConfig(
        vocab_size=67, d_model=48, d_kv=8, d_ff=88, num_layers=2, num_decoder_layers=2, num_heads=6, num_experts=4, expert_capacity=1 << 20,
        num_sparse_encoder_layers=2, num_sparse_decoder_layers=2, decoder_start_token_id=0), "lemon upcycle"),
}  # fmt: skip


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_it_is_exact_after_a_stock_reload_and_has_the_targets_tensors(case, tmp_path):
    make, aim, names = CASES[case]
    small, target = make(), aim()
    found = like(small, target)
    assert " ".join(method.name for method in found.methods) == names
    growth = Growth.of(small, like=target)
    assert all(plan.preserves_function for plan in growth.plans)
    big = reloaded(growth.model, tmp_path)
    assert type(big).__name__ == transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(
        target.model_type, "SwitchTransformersForConditionalGeneration"
    )
    assert shapes(big) == shapes(type(big)(target))
    tokens = torch.randint(3, 60, (3, 24), generator=torch.Generator().manual_seed(1))
    more = {"decoder_input_ids": tokens.flip(0)} if small.config.is_encoder_decoder else {}
    with torch.no_grad():
        a, b = (model(input_ids=tokens, **more).logits.double() for model in (small, big))
    assert float((a - b[..., : a.shape[-1]]).abs().max() / a.abs().max()) <= 1e-5


def test_more_experts_with_the_same_number_for_a_token_are_measured():
    small = pico.build("mixtral")
    with warnings.catch_warnings(record=True):
        growth = Growth.of(small, like=pico.build("mixtral", num_local_experts=8).config)
    assert growth.certificate.relative_error > 1e-3
    (row,) = rows(growth.plans[0], small)
    assert (row.axis, row.old, row.new) == ("experts", 4, 8)
    assert row.obstacle == "copies of the best expert take the places of others; num_experts_per_tok 4 would be exact"


def test_other_fields_of_experts_are_the_sources_or_the_targets():
    target = pico.build("mixtral", num_local_experts=8, num_experts_per_tok=3, router_aux_loss_coef=0.5).config
    kept, taken = (like(pico.build("mixtral"), target, take_target_fields=take) for take in (False, True))
    assert kept.fields == {"num_experts_per_tok": (2, 3), "router_aux_loss_coef": (0.001, 0.5)}
    assert Growth.of(pico.build("mixtral"), kept.methods).model.config.num_experts_per_tok == 2
    config = Growth.of(pico.build("mixtral"), taken.methods).model.config
    assert (config.num_experts_per_tok, config.router_aux_loss_coef) == (3, 0.5)
    same = {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    target = pico.build("mixtral", intermediate_size=64, router_aux_loss_coef=0.5, **same).config
    taken = like(dense("llama"), target, take_target_fields=True)
    growth = Growth.of(dense("llama"), taken.methods)
    assert growth.model.config.router_aux_loss_coef == 0.5
    assert growth.plans[-1].preserves_function


def test_a_shared_expert_is_the_dense_block():
    """As in Qwen1.5-MoE: 4 shards to a copy, and a shared expert of the dense size."""
    small = pico.build("qwen2", intermediate_size=64)
    config = transformers.Qwen2MoeConfig(
        **{**pico.LLAMA, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 4,
           "norm_topk_prob": True})  # fmt: skip
    growth = Growth.of(small, like=config)
    assert growth.methods[-1]["shared_experts"] == 1
    assert growth.methods[-1]["granularity"] == 4
    assert error(small, growth.model) <= 1e-5


@pytest.mark.skipif(not STORIES.exists(), reason="no ../shared/data")
def test_a_trained_llama_grows_to_a_published_kind_of_mixture(tmp_path):
    """stories260K to a Mixtral twice as wide, of 8 experts of which a token gets 2, streamed from disk to disk."""
    small = transformers.AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    entries = {
        **small.config.to_dict(), "model_type": "mixtral", "hidden_size": 128, "num_attention_heads": 16, "num_key_value_heads": 8,
        "intermediate_size": 344, "num_hidden_layers": 7, "num_local_experts": 8, "num_experts_per_tok": 2, "architectures": None,
    }  # fmt: skip
    target = tmp_path / "target.json"
    target.write_text(
        json.dumps({key: value for key, value in entries.items() if key not in ("mlp_bias", "attention_bias")})
    )
    done = meristem("grow", STORIES, tmp_path / "big", "--like", target)
    assert done.returncode == 0, done.stderr
    assert "lemon, upcycle" in done.stdout
    big = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "big", dtype=torch.float32).eval()
    tokens = torch.randint(3, 500, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = small(input_ids=tokens).logits, big(input_ids=tokens).logits
    assert float((a - b).abs().max() / a.abs().max()) <= 1e-5
    assert (big.config.num_local_experts, big.config.hidden_size, big.config.num_hidden_layers) == (8, 128, 7)


def test_streamed_and_dry(tmp_path):
    small = pico.build("qwen3")
    config = qwen(hidden_size=48, moe_intermediate_size=48, num_experts=8, norm_topk_prob=True).config
    small.save_pretrained(tmp_path / "small")
    (tmp_path / "target.json").write_text(json.dumps(config.to_dict()))
    growth = Growth.of(small, like=config)
    made = weights_of(ms.grow(open_streamed(tmp_path / "small"), like=tmp_path / "target.json"))
    assert all(torch.equal(made[name], tensor) for name, tensor in growth.model.state_dict().items())
    dry = meristem("grow", tmp_path / "small", tmp_path / "big", "--like", tmp_path / "target.json", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "each expert the dense block, the router random" in dry.stdout
    assert "padded, the stream scaled" in dry.stdout
    priced = meristem("plan", tmp_path / "small", "--like", tmp_path / "target.json", "--tokens", "10M")
    assert priced.returncode == 0, priced.stderr


@pytest.mark.parametrize("family, target, message", [
    ("gpt2", lambda: pico.build("mixtral").config, "the target is a mixtral, the network a gpt2; a gpt2 of any larger size would work"),
    ("llama", lambda: qwen().config, "a llama of any larger size, or a mixtral, would work"),
    ("llama", lambda: pico.build("mixtral", intermediate_size=16).config,
     "the 2 experts of 16 units that a token gets hold 32 of the network's 44 feed-forward units; intermediate_size of at least 22 would work"),
    ("llama", lambda: pico.build("mixtral", num_hidden_layers=1).config, "smaller on some axes: layers 2 -> 1"),
    ("qwen3", lambda: qwen(mlp_only_layers=[0]).config, "layers without experts by number .mlp_only_layers .0.., .*decoder_sparse_step would work"),
    ("mixtral", lambda: pico.build("mixtral", num_local_experts=2).config, "experts 4 -> 2. The nearest target that works has experts 4"),
    ("mixtral", lambda: pico.build("llama").config, "the target is a llama, the network a mixtral"),
])  # fmt: skip
def test_bad_targets(family, target, message):
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(pico.build(family), like=target())
