"""Dense networks become mixtures of experts: exact after a stock reload, every new tensor explained, the optimizer carried."""

from __future__ import annotations

import json
from pathlib import Path

import pico
import pytest
import torch
import transformers
from command_line import meristem
from safetensors import safe_open
from test_optimizer import batches, step

import meristem as ms
from meristem.growth.optimizers.optimizer import named_state
from meristem.growth.plans.mixtures import MIXTURES

UNITS = {"intermediate_size": 64}  # a quarter of them is still what grouped products of matrices take
GRANITE = {"attention_multiplier": 0.35, "residual_multiplier": 0.7, "embedding_multiplier": 2.0, "logits_scaling": 1.5}
STORIES = Path(__file__).parents[3] / "shared/data/checkpoints/stories260K-llama"


def dense(family: str, **changes) -> torch.nn.Module:
    if family == "granite":
        config = transformers.GraniteConfig(**{**pico.LLAMA, **UNITS, **GRANITE, **changes})
        torch.manual_seed(0)
        model = transformers.GraniteForCausalLM(config)
        pico.randomise(model)
        return model.eval()
    return pico.build(family, **{**({} if family == "t5" else UNITS), **changes})


def reloaded(model, folder):
    model.save_pretrained(folder)
    found, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return found.eval()


def error(small, big, length=24) -> float:
    ids = torch.randint(3, 67, (3, length), generator=torch.Generator().manual_seed(1))
    more = {"decoder_input_ids": ids.flip(0)} if small.config.is_encoder_decoder else {}
    with torch.no_grad():
        a, b = (model(input_ids=ids, **more).logits.double() for model in (small, big))
    return float((a - b).abs().max() / a.abs().max())


EXACT = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": 8}, {"num_experts": 4}),
    "llama, granularity 2": ("llama", {}, {"granularity": 2, "experts_per_token": 4}),
    "llama, tied, other theta and eps": (
        "llama",
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, granularity 4": ("qwen3", {}, {"granularity": 4, "experts_per_token": 4}),
    "qwen3, not renormalised": ("qwen3", {}, {"norm_topk_prob": False}),
    "qwen3, every second layer": ("qwen3", {"num_hidden_layers": 4}, {"every": 2}),
    "qwen2": ("qwen2", {}),
    "qwen2, shared expert": ("qwen2", {}, {"shared_experts": 1, "granularity": 2}),
    "qwen2, not renormalised": ("qwen2", {}, {"norm_topk_prob": False, "experts_per_token": 3}),
    "olmo2": ("olmo2", {}),
    "olmo2, not renormalised": ("olmo2", {}, {"norm_topk_prob": False, "router": "zero"}),
    "granite": ("granite", {}, {"experts_per_token": 3}),
    "t5": ("t5", {"tie_word_embeddings": True}, {"experts_per_token": 1, "num_experts": 4}),
    "t5, every second layer": ("t5", {"num_layers": 4, "num_decoder_layers": 4}, {"experts_per_token": 1, "every": 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT)
def test_it_is_exact_after_a_stock_reload(case, tmp_path):
    family, changes, *options = EXACT[case]
    small = dense(family, **changes)
    growth = ms.Growth.of(small, ms.Upcycle(**(options[0] if options else {})))
    assert growth.plans[0].preserves_function
    assert growth.certificate is not None
    big = reloaded(growth.model, tmp_path)
    assert big.config.model_type == MIXTURES[family].model_type
    assert error(small, big) <= 1e-5
    routers = [p for name, p in big.named_parameters() if "router" in name or name.endswith("mlp.gate.weight")]
    sparse = len(growth.anatomy.blocks) and sum(blocks.length for blocks in growth.anatomy.blocks)
    assert len(routers) == sparse // (options[0].get("every", 1) if options else 1)
    random = not growth.plans[0].experts.zero_router
    assert all(bool(router.any()) == random for router in routers)


def test_a_random_router_that_is_not_renormalised_is_measured():
    growth = ms.Growth.of(dense("qwen3"), ms.Upcycle(norm_topk_prob=False, router="random"))
    assert not growth.plans[0].preserves_function
    assert growth.certificate is not None
    assert growth.certificate.relative_error > 1e-4


def test_every_entry_of_an_expert_has_its_place():
    """Granularity 2: expert e is shard e mod 2; the shards of a copy share a row of the router; down_proj counts twice."""
    small = dense("llama")
    growth = ms.Growth.of(small, ms.Upcycle(num_experts=6, experts_per_token=2, granularity=2))
    old, new = small.model.layers[1].mlp, growth.model.model.layers[1].mlp
    for expert in range(6):
        units = slice(0, 32) if expert % 2 == 0 else slice(32, 64)
        gate, up = new.experts.gate_up_proj[expert].chunk(2)
        assert torch.equal(gate, old.gate_proj.weight[units])
        assert torch.equal(up, old.up_proj.weight[units])
        assert torch.equal(new.experts.down_proj[expert], 2 * old.down_proj.weight[:, units])
    rows = new.gate.weight
    assert torch.equal(rows[0::2], rows[1::2])
    assert len(rows.unique(dim=0)) == 3
    assert float(rows.std()) == pytest.approx(0.02, rel=0.3)


def test_provenance_of_experts_and_router():
    growth = ms.Growth.of(dense("llama"), ms.Upcycle(num_experts=6, experts_per_token=2, granularity=2))
    written = ms.Provenance.of_dict(json.loads(json.dumps(growth.provenance.as_dict())))
    written.check(growth.model)
    for found in (growth.provenance, written):
        experts = found.masks("model.layers.0.mlp.experts.gate_up_proj")
        assert experts["old"][:2].all()
        assert experts["copied"][2:].all()
        assert not experts["fresh"].any()
        assert found.mask("model.layers.0.mlp.gate.weight", "fresh").all()
        assert found.mask("model.layers.0.self_attn.q_proj.weight", "old").all()
    router, dense_size = 2 * 6 * 32, sum(p.numel() for p in dense("llama").parameters())
    assert growth.provenance.counts()["fresh"] == router
    assert growth.provenance.counts()["old"] == dense_size


def test_drop_upcycling_draws_the_same_units_anew_in_all_three_matrices():
    small = dense("llama")
    growth = ms.Growth.of(small, ms.Upcycle(num_experts=4, reinit=0.25, seed=3))
    assert not growth.plans[0].preserves_function
    old, new = small.model.layers[0].mlp, growth.model.model.layers[0].mlp.experts
    gate_up, down = (
        growth.provenance.mask(f"model.layers.0.mlp.experts.{part}_proj", "fresh") for part in ("gate_up", "down")
    )
    drawn = gate_up[:, :64, 0]
    assert drawn.sum(1).tolist() == [16] * 4
    assert len({tuple(row.tolist()) for row in drawn}) == 4  # other units in each expert
    assert torch.equal(gate_up[:, 64:, 0], drawn)
    assert torch.equal(down[:, 0, :], drawn)
    for expert in range(4):
        for name, found in (("gate_proj", new.gate_up_proj[expert, :64]), ("up_proj", new.gate_up_proj[expert, 64:]), ("down_proj", new.down_proj[expert].T)):  # fmt: skip
            source = getattr(old, name).weight if name != "down_proj" else old.down_proj.weight.T
            assert torch.equal(found[~drawn[expert]], source[~drawn[expert]])
            assert not torch.equal(found[drawn[expert]], source[drawn[expert]])
            assert float(found[drawn[expert]].std()) == pytest.approx(float(source.std()), rel=0.15)


def test_the_gradients_of_experts_add_up_to_the_dense_one_and_the_router_learns():
    small = dense("llama").train()
    big = ms.grow(small, ms.Upcycle(num_experts=4)).train()
    tokens = batches(1, 0)[0]
    for model in (small, big):
        model(input_ids=tokens, labels=tokens).loss.backward()
    for layer in range(2):
        old, new = small.model.layers[layer].mlp, big.model.layers[layer].mlp.experts
        assert (new.gate_up_proj.grad.flatten(1).abs().amax(1) > 0).all()
        torch.testing.assert_close(new.gate_up_proj.grad.sum(0)[:64], old.gate_proj.weight.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(new.down_proj.grad.sum(0), old.down_proj.weight.grad, rtol=1e-3, atol=1e-5)
    # Alike experts give the same output however they are weighed, so the balancing loss alone moves the router at first.
    assert float(big.model.layers[0].mlp.gate.weight.grad.abs().max()) < 1e-6
    big.zero_grad()
    big(input_ids=tokens, labels=tokens, output_router_logits=True).loss.backward()
    assert float(big.model.layers[0].mlp.gate.weight.grad.abs().max()) > 1e-5
    optimizer = torch.optim.AdamW(big.parameters(), lr=1e-2)
    step(big, optimizer, tokens)
    step(big, optimizer, batches(1, 1)[0])
    assert float(big.model.layers[0].mlp.gate.weight.grad.abs().max()) > 1e-5


def test_a_zero_router_that_is_not_renormalised_learns_at_once():
    big = ms.grow(dense("qwen3"), ms.Upcycle(norm_topk_prob=False)).train()
    tokens = batches(1, 0)[0]
    big(input_ids=tokens, labels=tokens).loss.backward()
    for layer in big.model.layers:
        assert float(layer.mlp.gate.weight.grad.abs().max()) > 1e-5
        assert float(layer.mlp.experts.gate_up_proj.grad.abs().max()) > 1e-5


def test_the_optimizer_is_carried_to_copies_and_reset_for_the_router():
    small = dense("llama").train()
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
    for tokens in batches(3, 0):
        step(small, optimizer, tokens)
    growth = ms.Growth.of(small, ms.Upcycle(num_experts=8))
    carried = growth.grow_optimizer(optimizer)
    before, after = named_state(optimizer, small), named_state(carried, growth.model)
    old, new = before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.experts.gate_up_proj"]
    for expert in range(8):  # each sees an eighth of the tokens
        torch.testing.assert_close(new["exp_avg"][expert, 64:], old["exp_avg"] / 8)
        torch.testing.assert_close(new["exp_avg_sq"][expert, 64:], old["exp_avg_sq"] / 64)
    router = after["model.layers.0.mlp.gate.weight"]
    assert not router["exp_avg"].any()
    assert not router["exp_avg_sq"].any()
    attention = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(after[attention]["exp_avg"], before[attention]["exp_avg"])
    gate = growth.model.model.layers[0].mlp.gate.weight
    rows = gate.detach().clone()
    step(growth.model, carried, batches(1, 5)[0])
    assert float((gate.detach() - rows).abs().max()) <= 1.001e-3 + 1e-3 * 0.01 * float(rows.abs().max())


def test_bf16_keeps_its_dtype_and_its_promise():
    growth = ms.Growth.of(dense("llama").bfloat16(), ms.Upcycle(granularity=2))
    assert {p.dtype for p in growth.model.parameters()} == {torch.bfloat16}
    assert growth.certificate is not None
    assert growth.certificate.holds
    unrounded = growth.certificate.unrounded_relative_error  # measured only where rounding shows
    assert (growth.certificate.relative_error if unrounded is None else unrounded) <= 1e-5


def test_the_command_line_streams_it_in_the_layout_of_experts_on_disk(tmp_path):
    small = dense("qwen3", tie_word_embeddings=True)
    small.save_pretrained(tmp_path / "small")
    done = meristem("grow", tmp_path / "small", tmp_path / "big", "--method", "upcycle", "--num-experts", 4, "--option",
                    "experts_per_token=2", "--max-shard-size", "100KB")  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = set()
    for file in (tmp_path / "big").glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    parts = ("gate", "up", "down")
    experts = {f"model.layers.1.mlp.experts.{e}.{part}_proj.weight" for e in range(4) for part in parts}
    assert {name for name in names if name.startswith("model.layers.1.mlp.experts")} == experts
    assert "lm_head.weight" not in names
    big, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "big", output_loading_info=True)
    assert not info["missing_keys"]
    assert error(small, big.eval()) <= 1e-5
    assert ms.provenance(tmp_path / "big").mask("model.layers.0.mlp.gate.weight", "fresh").all()
    assert json.loads((tmp_path / "big/meristem.json").read_text())["certificate"]["holds"]


@pytest.mark.parametrize("given, exact", [("false", False), ("True", True)])
def test_the_command_line_takes_truth_values(given, exact, tmp_path):
    """Whether weights sum to one is a truth value, of which every usual spelling is understood."""
    dense("qwen3").save_pretrained(tmp_path / "small")
    options = ("--num-experts", "4", "--option", f"norm_topk_prob={given}", "--dry-run")
    assert meristem("grow", tmp_path / "small", tmp_path / "big", "--method", "upcycle", *options).returncode == 0
    done = meristem("grow", tmp_path / "small", tmp_path / "big", "--method", "upcycle", *options[:-1])
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "big" / "config.json").read_text())["norm_topk_prob"] is exact


def test_what_grows_behind_it_is_exact_with_every_expert_there(tmp_path):
    """A public script for block expansion loses 2 tensors of a mixture and writes 8 wrong ones."""
    small = dense("llama")
    growth = ms.Growth.of(small, [ms.Upcycle(num_experts=4), ms.IdentityBlocks(depth=2)])
    big = reloaded(growth.model, tmp_path)
    assert error(small, big) <= 1e-5
    assert big.config.num_hidden_layers == 4
    for layer, block in enumerate(big.model.layers):
        source = growth.source.model.layers[layer // 2].mlp
        for expert in range(4):
            assert torch.equal(block.mlp.experts.gate_up_proj[expert], torch.cat([source.gate_proj.weight, source.up_proj.weight]))  # fmt: skip
    assert not big.model.layers[1].mlp.experts.down_proj.any()
    masks = growth.provenance.masks("model.layers.1.mlp.experts.down_proj")
    assert masks["fresh"].all()
    assert growth.provenance.mask("model.layers.1.mlp.gate.weight", "fresh").all()


def test_a_published_checkpoint(tmp_path):
    if not STORIES.exists():
        pytest.skip("../shared/data is not there")
    small = transformers.AutoModelForCausalLM.from_pretrained(STORIES).eval()
    growth = ms.Growth.of(small, ms.Upcycle(num_experts=4))
    assert error(small, reloaded(growth.model, tmp_path), length=60) <= 1e-5


@pytest.mark.parametrize(
    "family, heads", [("Llama", "QuestionAnswering"), ("Qwen2", "QuestionAnswering"), ("Qwen3", "TokenClassification")]
)
def test_heads_whose_classes_call_the_network_otherwise(family, heads, tmp_path):
    """LlamaForQuestionAnswering calls it `transformer`, MixtralForQuestionAnswering `model`."""
    config = getattr(transformers, f"{family}Config")(**{**pico.LLAMA, **UNITS})
    small = getattr(transformers, f"{family}For{heads}")(config)
    pico.randomise(small)
    big = reloaded(ms.grow(small.eval(), ms.Upcycle(num_experts=4)), tmp_path)
    ids = torch.randint(3, 67, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = (next(v for k, v in model(ids).items() if k.endswith("logits")).double() for model in (small, big))
    assert float((a - b).abs().max() / a.abs().max()) <= 1e-5


def test_a_t5_whose_head_reads_unscaled_outputs_gets_a_head_of_its_own(tmp_path):
    """Switch scales what a tied head reads, and nothing else; T5 says whether it does in an entry of its own."""
    small = dense("t5", tie_word_embeddings=False)
    assert not small.config.scale_decoder_outputs
    growth = ms.Growth.of(small, ms.Upcycle(num_experts=4, experts_per_token=1))
    big = reloaded(growth.model, tmp_path)
    assert not big.config.tie_word_embeddings
    assert torch.equal(big.lm_head.weight, small.shared.weight)
    assert growth.provenance.mask("lm_head.weight", "copied").all()
    assert growth.provenance.mask("shared.weight", "old").all()
    assert error(small, big) <= 1e-5


def test_what_a_mixtures_config_cannot_say_is_named():
    """Qwen3-MoE has one window for all layers: all of them with it are exact, some are refused by name."""
    window = {"use_sliding_window": True, "sliding_window": 4}
    small = dense("qwen3", **window, max_window_layers=0)
    assert error(small, ms.grow(small, ms.Upcycle())) <= 1e-5
    message = r"qwen3_moe has no such config entry as .*layer_types=\['full_attention', 'sliding_attention'\]"
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(dense("qwen3", **window, max_window_layers=1), ms.Upcycle())


REFUSED = {
    "experts_per_token=9 of num_experts=8; at most 8": ("llama", {"experts_per_token": 9}, {}),
    "num_experts=8 is not a multiple of granularity=3.* num_experts=9 would work": ("llama", {"granularity": 3}, {}),
    "does not divide the 64 feed-forward units; 4 would": ("llama", {"granularity": 5, "num_experts": 10, "experts_per_token": 5}, {}),
    "no mixture class is known for gpt2; known for llama": ("gpt2", {}, {}),
    "mixtral has no shared experts": ("llama", {"shared_experts": 1}, {}),
    "mixtral has experts in every layer": ("llama", {"every": 2}, {}),
    "always sum to one": ("llama", {"norm_topk_prob": False}, {}),
    "gets one expert": ("t5", {}, {}),
    "reinit is a share": ("llama", {"reinit": 1.5}, {}),
    "num_experts must be a whole number": ("llama", {"num_experts": 2.5}, {}),
    "is one of 'random', 'zero'": ("llama", {"router": "learned"}, {}),
    r"mixtral has no place for model.layers.0.self_attn.q_proj.bias \(8 tensors": ("llama", {}, {"attention_bias": True}),
    "mixtral is already a mixture of experts; more_experts": ("mixtral", {}, {}),
    "qwen2_moe has no config entry 'router_aux_los_coef'; did you mean 'router_aux_loss_coef'": (
        "qwen2", {"fields": {"router_aux_los_coef": 0.1}}, {}
    ),
    "have a matrix wi, which the feed-forward block of this t5 lacks: it has wi_0, wi_1, wo": (
        "t5", {"experts_per_token": 1}, {"feed_forward_proj": "gated-gelu"}
    ),
    "every=3 leaves no layer with experts; there are 2": ("qwen3", {"every": 3}, {}),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    family, options, changes = REFUSED[message]
    model = pico.build(family, **changes) if family in ("gpt2", "t5", "mixtral") else dense(family, **changes)
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(model, ms.Upcycle(**options))


def test_units_that_grouped_products_do_not_take_are_named():
    """66 units of float32 are no whole number of 16 bytes; padded to 68 they run."""
    small = pico.build("llama", intermediate_size=66)
    with pytest.raises(ms.MeristemError, match="grouped products of experts need units of whole 16 bytes"):
        ms.grow(small, ms.Upcycle())
    big = ms.grow(small, [ms.ZeroPadding(intermediate_size=68), ms.Upcycle()])
    assert error(small, big) <= 1e-5


def test_what_it_will_cost_counts_what_a_token_meets():
    """Twice the feed-forward FLOPs at top-2, however many experts there are; all of their parameters."""
    from meristem.recipes.costs import network_cost, planned_target, planning_inputs

    small = dense("llama")
    inputs = planning_inputs(small, 16)
    costs = {n: network_cost(planned_target(small, [ms.Upcycle(num_experts=n)]), inputs) for n in (2, 8)}
    alone = network_cost(planned_target(small, []), inputs)
    block, router = 2 * 3 * 64 * 32, 2 * 32
    assert costs[8].parameters == alone.parameters + 7 * block + 8 * router
    assert costs[8].flops_per_token - costs[2].flops_per_token == pytest.approx(6 * 6 * router, rel=0.01)
    assert costs[2].flops_per_token - alone.flops_per_token == pytest.approx(6 * (block + 2 * router), rel=0.02)
