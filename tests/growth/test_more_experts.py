"""Experts as an axis, Grow, Don't Overwrite, LLaMA-Pro whole, and which layers need room."""

from __future__ import annotations

import copy

import pico
import pytest
import torch
from test_optimizer import batches, step
from test_upcycle import error, reloaded
from torch import optim

import meristem as ms
from meristem.growth.optimizers.optimizer import grow_state
from meristem.growth.rank_layers import effective_rank

QWEN = {**pico.LLAMA, "head_dim": 8, "moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}


def qwen(**changes):
    import transformers

    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**{**QWEN, **changes}))
    pico.randomise(model)
    return model.eval()


@pytest.mark.parametrize("small, options", [
    (lambda: pico.build("mixtral"), {"num_experts": 8, "experts_per_token": 4}),
    (lambda: pico.build("mixtral"), {"num_experts": 12, "experts_per_token": 6}),
    (lambda: qwen(norm_topk_prob=True), {"num_experts": 8, "experts_per_token": 4}),
    (lambda: qwen(norm_topk_prob=False), {"num_experts": 8, "experts_per_token": 4}),
])  # fmt: skip
def test_all_copies_of_a_chosen_expert_share_its_weight(small, options, tmp_path):
    small = small()
    growth = ms.Growth.of(small, ms.MoreExperts(**options))
    assert growth.plans[0].preserves_function
    big = reloaded(growth.model, tmp_path)
    assert big.config.num_experts_per_tok == options["experts_per_token"]
    assert error(small, big) <= 1e-5
    masks = growth.provenance.masks("model.layers.1.mlp.experts.down_proj")
    assert masks["old"][:4].all()
    assert masks["copied"][4:].all()


ROUTED = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "vocab_size": 67, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1}


def routed(name, **changes):
    """A mixture whose config counts routed experts by another name, its first layer dense; the bias by which experts are chosen is not zero."""
    import transformers

    own = {**ROUTED, **(LATENT if name.startswith("Deepseek") else {"head_dim": 8}), **changes}
    if name == "Ernie4_5_Moe":
        own = {**pico.LLAMA, "moe_intermediate_size": 16, **ERNIE, **changes}
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**own))
    pico.randomise(model)
    generator = torch.Generator().manual_seed(3)
    for buffer, values in [*model.named_buffers(), *model.named_parameters()]:
        if "e_score_correction_bias" in buffer:
            values.data.copy_(0.05 * torch.randn(values.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("name, changes", [
    ("DeepseekV2", {"topk_method": "greedy"}),
    ("DeepseekV3", {}),
    ("DeepseekV3", {"norm_topk_prob": False}),  # sigmoids that are not normalised: copies would add up to twice as much
    ("Glm4Moe", {}),
    ("Dots1", {}),
    ("Ernie4_5_Moe", {}),  # a softmax over all experts, and a bias beside it
])  # fmt: skip
def test_experts_by_other_names(name, changes, tmp_path):
    small = routed(name, **changes)
    growth = ms.Growth.of(small, ms.MoreExperts(num_experts=8, experts_per_token=4))
    assert growth.plans[0].preserves_function
    big = reloaded(growth.model, tmp_path)
    assert error(small, big) <= 1e-5
    assert growth.provenance.masks("model.layers.1.mlp.experts.down_proj")["copied"][4:].all()
    assert sum(1 for n, _ in big.named_parameters() if n.endswith("experts.down_proj")) == 1


def test_a_router_that_chooses_groups_first_promises_nothing():
    growth = ms.Growth.of(routed("DeepseekV3", n_group=2), ms.MoreExperts(num_experts=8, experts_per_token=4))
    assert not growth.plans[0].preserves_function
    assert growth.certificate is not None
    assert growth.certificate.relative_error > 1e-3


def switch():
    import transformers

    torch.manual_seed(0)
    sizes = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 44,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "vocab_size": 67,
    }
    sparse = {
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 1,
        "num_experts": 3,
        "expert_capacity": 1 << 20,
    }
    config = transformers.SwitchTransformersConfig(**sizes, **sparse, decoder_start_token_id=0)
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    pico.randomise(model)
    return model.eval()


def test_switch_gets_more_experts_each_a_module_of_its_own(tmp_path):
    """One expert for a token: of tied copies the first is chosen, with its part of the old weight, and is as loud as all."""
    small = switch()
    growth = ms.Growth.of(small, ms.MoreExperts(num_experts=6))
    assert growth.plans[0].preserves_function
    assert error(small, reloaded(growth.model, tmp_path)) <= 1e-5
    experts, before = growth.model.decoder.block[1].layer[2].mlp.experts, small.decoder.block[1].layer[2].mlp.experts
    for number in range(6):
        own, source = experts[f"expert_{number}"], before[f"expert_{number % 3}"]
        assert torch.equal(own.wi.weight, source.wi.weight)
        torch.testing.assert_close(own.wo.weight, 2 * source.wo.weight)
        labels = growth.provenance.labels(f"decoder.block.1.layer.2.mlp.experts.expert_{number}.wi.weight")
        assert (labels == (0 if number < 3 else 1)).all()
    router = growth.provenance.labels("decoder.block.1.layer.2.mlp.router.classifier.weight")
    assert (router[:3] == 0).all()
    assert (router[3:] == 1).all()
    state = {n: {"exp_avg": torch.ones_like(p), "exp_avg_sq": torch.ones_like(p)} for n, p in small.named_parameters()}
    grown = grow_state(growth.plans[0], state)
    for part, share in (("wi", 2), ("wo", 4)):  # half of the tokens, and twice as loud
        own = grown[f"decoder.block.1.layer.2.mlp.experts.expert_4.{part}.weight"]
        torch.testing.assert_close(own["exp_avg"], torch.full_like(own["exp_avg"], 1 / share))
        torch.testing.assert_close(own["exp_avg_sq"], torch.full_like(own["exp_avg"], 1 / share**2))
    uneven = ms.Growth.of(small, ms.MoreExperts(num_experts=4))
    assert not uneven.plans[0].preserves_function
    with pytest.raises(ms.MeristemError, match="switch_transformers has no field for experts_per_token"):
        ms.grow(small, ms.MoreExperts(num_experts=6, experts_per_token=2))


def test_norms_of_single_heads_share_their_gradient():
    """StableLM has a norm for each head, a module of its own: a head's copies get their share of its gradient, and are copies."""
    import transformers

    torch.manual_seed(0)
    small = transformers.StableLmForCausalLM(transformers.StableLmConfig(**pico.LLAMA, qk_layernorm=True))
    pico.randomise(small)
    growth, tokens = ms.Growth.of(small.eval(), ms.HyperCloning(width=2, noise=0.0)), batches(1, 0)[0]
    for model in (small, growth.model):
        model(input_ids=tokens, labels=tokens).loss.backward()
    state = {n: {"exp_avg": p.grad, "exp_avg_sq": p.grad**2} for n, p in small.named_parameters()}
    found = grow_state(growth.plans[0], state)
    norms = [n for n, _ in growth.model.named_parameters() if ".q_layernorm.norms." in n]
    assert len(norms) == 16
    for name in norms:
        true = growth.model.get_parameter(name).grad
        torch.testing.assert_close(found[name]["exp_avg"], true, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(found[name]["exp_avg_sq"], true**2, rtol=2e-3, atol=1e-12)
    counts = [int(growth.provenance.mask(name, "copied").sum()) for name in norms]
    assert counts == ([0] * 4 + [8] * 4) * 2


def test_a_fixed_top_k_is_measured():
    growth = ms.Growth.of(pico.build("mixtral"), ms.MoreExperts(num_experts=8))
    assert not growth.plans[0].preserves_function
    assert growth.certificate is not None
    assert growth.certificate.relative_error > 1e-3


def test_experts_that_are_used_more_get_more_copies_and_noise_parts_rows():
    small = pico.build("mixtral")
    growth = ms.Growth.of(small, ms.MoreExperts(num_experts=8, weights=[10, 70, 20, 0], noise=0.01))
    block, old = growth.model.model.layers[0].mlp, small.model.layers[0].mlp
    sources = [
        next(e for e in range(4) if torch.equal(block.experts.down_proj[n], old.experts.down_proj[e])) for n in range(8)
    ]
    assert sources == [0, 1, 2, 3, 1, 1, 1, 2]  # in proportion, one at least
    away = block.gate.weight - old.gate.weight[sources]
    assert float(away.std()) == pytest.approx(0.01, rel=0.2)
    assert len(block.gate.weight.unique(dim=0)) == 8
    assert torch.equal(
        growth.model.model.layers[0].self_attn.q_proj.weight, small.model.layers[0].self_attn.q_proj.weight
    )


def test_wider_experts_are_exact(tmp_path):
    small = qwen()
    growth = ms.Growth.of(small, ms.Net2Net(sizes={"moe_ffn": 80}))
    big = reloaded(growth.model, tmp_path)
    assert big.config.moe_intermediate_size == 80
    assert error(small, big) <= 1e-5


@pytest.mark.parametrize("model, options, message", [
    ("llama", {"num_experts": 8}, "llama has no experts; upcycle adds some"),
    ("mixtral", {"num_experts": 4}, "more than 4, the present number, got 4"),
    ("mixtral", {"num_experts": 8, "experts_per_token": 9}, "from 1 to 8, got 9"),
    ("mixtral", {"num_experts": 8, "weights": [1, 2]}, "weights must be 4 numbers"),
    ("mixtral", {"num_experts": 8, "weights": "a,b"}, "weights are numbers"),
])  # fmt: skip
def test_refusals(model, options, message):
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(pico.build(model), ms.MoreExperts(**options))


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "gemma3"])
def test_grow_dont_overwrite_is_exact_and_its_copies_learn_alone(family):
    small = pico.build(family)
    growth = ms.Growth.of(small, ms.GrowDontOverwrite())
    assert growth.certificate is not None
    assert growth.certificate.holds
    counts = growth.provenance.counts()
    frozen = ms.freeze_old(growth.model, growth, "copied")
    assert frozen.moving == counts["copied"]
    if family == "llama":
        assert counts["copied"] == 2 * 3 * 44 * 32


def test_g_train_copies_part_by_noise_alone():
    for noise, parted in ((0.0, False), (0.05, True)):
        growth = ms.Growth.of(pico.build("llama"), ms.GrowDontOverwrite(noise=noise))
        ms.freeze_old(growth.model, growth, "grown")
        optimizer = optim.SGD([p for p in growth.model.parameters() if p.requires_grad], lr=0.1)
        for tokens in batches(3, 0):
            step(growth.model, optimizer, tokens)
        up = growth.model.model.layers[0].mlp.up_proj.weight
        assert bool((up[:44] - up[44:]).abs().max() > 1e-4) == parted


def test_chosen_layers_learn_as_if_only_they_had_grown():
    growth = ms.Growth.of(pico.build("llama"), ms.GrowDontOverwrite())
    before = copy.deepcopy(growth.model.state_dict())
    ms.freeze_old(growth.model, growth, layers=[1])
    optimizer = optim.AdamW([p for p in growth.model.parameters() if p.requires_grad], lr=1e-2)
    step(growth.model, optimizer, batches(1, 0)[0])
    moved = {name for name, tensor in growth.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    with pytest.raises(ms.MeristemError, match=r"layers must be numbers from 0 to 1, .* got 2"):
        ms.freeze_old(growth.model, growth, layers=[2])


def test_llama_pro_trains_its_new_blocks_and_nothing_else(tmp_path):
    """Whole: exact at first, only new blocks move, and the reloaded network goes on in the same way."""
    small = pico.build("llama")
    growth = ms.Growth.of(small, ms.IdentityBlocks(num_hidden_layers=4))
    assert error(small, growth.model) <= 1e-6
    ms.freeze_old(growth.model, growth)
    optimizer = optim.AdamW([p for p in growth.model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    losses = [step(growth.model, optimizer, batches(1, 4)[0]) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1
    for new, old in ((0, 0), (2, 1)):
        for name, parameter in small.model.layers[old].named_parameters():
            assert torch.equal(growth.model.model.layers[new].get_parameter(name), parameter), name
    assert torch.equal(growth.model.model.embed_tokens.weight, small.model.embed_tokens.weight)
    assert growth.model.model.layers[1].mlp.down_proj.weight.any()
    back = reloaded(growth.model, tmp_path)
    frozen = ms.freeze_old(back, growth.provenance)
    assert frozen.moving == sum(p.numel() for layer in (1, 3) for p in back.model.layers[layer].parameters())


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3", "Olmo2", "Gemma3Text", "Gemma4Text", "Granite", "Phi3"])
def test_stock_classes_want_feed_forward_blocks_alike(name):
    """So chosen layers are chosen by what trains. Where this fails, `per_layer_config` has come to be read, and can be written."""
    import transformers

    sizes = {
        "vocab_size": 67,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    changed = {1: {"intermediate_size": 88}}
    config = getattr(transformers, f"{name}Config")(
        **sizes, pad_token_id=0, intermediate_size=44, per_layer_config=changed
    )
    model_class = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
    ambiguous = transformers.integrations.heterogeneity.configuration_utils.AmbiguousGlobalPerLayerAttributeError
    with torch.device("meta"), pytest.raises(ambiguous, match="'intermediate_size' is a per-layer attribute"):
        model_class(config)


def test_layers_are_ranked_by_the_effective_rank_of_their_updates():
    small = pico.build("llama", num_hidden_layers=3)
    tuned = copy.deepcopy(small)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, rank in ((0, 1), (1, 20), (2, 4)):
            for name in ("gate_proj", "up_proj", "down_proj"):
                weight = getattr(tuned.model.layers[layer].mlp, name).weight
                a, b = (torch.randn(n, rank, generator=generator) for n in weight.shape)
                weight += a @ b.T
        tuned.model.layers[0].self_attn.q_proj.weight += torch.randn(32, 32, generator=generator)  # not looked at
    found = ms.rank_layers(small, tuned)
    assert [layer.layer for layer in found] == [1, 2, 0]
    assert found[-1].rank == pytest.approx(1, abs=1e-3)
    assert 2 < found[1].rank <= 4
    assert found[0].blocks == "model.layers"
    assert effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0]))) == pytest.approx(2)
    with pytest.raises(ms.MeristemError, match="nothing has changed"):
        ms.rank_layers(small, small)
    with pytest.raises(ms.MeristemError, match="not one network"):
        ms.rank_layers(small, pico.build("llama", intermediate_size=60))
    with pytest.raises(ms.MeristemError, match="copies must be a whole number of at least 2"):
        ms.grow(small, ms.GrowDontOverwrite(copies=1))
