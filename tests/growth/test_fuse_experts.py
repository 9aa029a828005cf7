"""Parents fused as the experts of one mixture."""

from __future__ import annotations

import pico
import pytest
import torch
import transformers
from command_line import meristem
from test_optimizer import batches, step
from test_upcycle import UNITS, dense, error, reloaded

import meristem as ms
from meristem.growth.fusion.optimizer import fuse_state
from meristem.growth.optimizers.block_steps import MISSED
from meristem.growth.optimizers.optimizer import named_state


def test_each_expert_is_one_parents_block_and_the_rest_their_mean():
    parents = [pico.build("llama", seed=seed, **UNITS) for seed in range(3)]
    fusion = ms.fuse_with_certificate(parents, ms.DeepFusion(weights=[0.5, 0.3, 0.2], experts=True))
    assert fusion.model.config.num_local_experts == 3
    assert fusion.model.config.num_experts_per_tok == 2
    assert not fusion.exact
    assert fusion.certificate is not None
    assert fusion.certificate.relative_error > 1e-2
    for number, block in enumerate(fusion.model.model.layers):
        for expert, parent in enumerate(parents):
            own = parent.model.layers[number].mlp
            assert torch.equal(
                block.mlp.experts.gate_up_proj[expert], torch.cat([own.gate_proj.weight, own.up_proj.weight])
            )
            assert torch.equal(block.mlp.experts.down_proj[expert], own.down_proj.weight)
        queries = [parent.model.layers[number].self_attn.q_proj.weight for parent in parents]
        mean = 0.5 * queries[0] + 0.3 * queries[1] + 0.2 * queries[2]
        torch.testing.assert_close(block.self_attn.q_proj.weight, mean)
        assert block.mlp.gate.weight.any()


@pytest.mark.parametrize("family, options", [("qwen3", {}), ("t5", {"experts_per_token": 1})])
def test_one_network_as_several_experts_is_exact(family, options, tmp_path):
    small = dense(family)
    fusion = ms.fuse_with_certificate([small, small], ms.DeepFusion(experts=True, **options))
    assert fusion.exact
    assert error(small, reloaded(fusion.model, tmp_path)) <= 1e-5


@pytest.mark.parametrize("tied_first", [True, False])
def test_a_tied_parent_beside_one_with_a_head_of_its_own(tied_first, tmp_path):
    """The mean of a tied head and another one is a head, so that the mixture does not tie it."""
    tied, apart = (
        pico.build("llama", seed=seed, tie_word_embeddings=tie, **UNITS) for seed, tie in ((0, True), (1, False))
    )
    parents = [tied, apart] if tied_first else [apart, tied]
    big = reloaded(ms.fuse(parents, ms.DeepFusion(experts=True)), tmp_path)
    assert not big.config.tie_word_embeddings
    embedding = tied.model.embed_tokens.weight
    torch.testing.assert_close(big.lm_head.weight, (embedding + apart.lm_head.weight) / 2)
    torch.testing.assert_close(big.model.embed_tokens.weight, (embedding + apart.model.embed_tokens.weight) / 2)


def test_separate_experts_are_the_parents_own():
    parents = [pico.build("t5", seed=seed) for seed in range(2)]
    fused = ms.fuse(parents, ms.DeepFusion(experts=True, experts_per_token=1))
    for expert, parent in enumerate(parents):
        found = fused.encoder.block[1].layer[1].mlp.experts[f"expert_{expert}"]
        own = parent.encoder.block[1].layer[1].DenseReluDense
        assert torch.equal(found.wi.weight, own.wi.weight)
        torch.testing.assert_close(found.wo.weight, 2 * own.wo.weight)  # a router without preferences gives each a half
    assert fused.encoder.block[1].layer[1].mlp.router.classifier.weight.any()


def test_the_command_line(tmp_path):
    for seed in range(2):
        pico.build("llama", seed=seed, **UNITS).bfloat16().save_pretrained(tmp_path / str(seed))
    done = meristem("fuse", tmp_path / "0", tmp_path / "1", tmp_path / "out", "--experts")
    assert done.returncode == 0, done.stderr
    assert "a router weighs them" in done.stdout
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert type(model).__name__ == "MixtralForCausalLM"
    assert model.dtype == torch.bfloat16


def gradients(model) -> dict:
    """A state whose moments are the gradient of one batch."""
    tokens = batches(1, 0)[0]
    model.train()(input_ids=tokens, labels=tokens).loss.backward()
    return {
        n: {"exp_avg": p.grad, "exp_avg_sq": p.grad**2, "step": torch.tensor(3.0)} for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_state_of_one_network_as_experts_is_that_of_true_gradients(family):
    small = dense(family)
    fusion = ms.fuse_with_certificate([small, small], ms.DeepFusion(experts=True))
    found, true = fuse_state(fusion, [gradients(small)] * 2), gradients(fusion.model)
    for name, entries in true.items():
        carried = found[name]
        if name.endswith(".mlp.gate.weight"):
            assert not carried["exp_avg"].any()
            assert carried["step"] == 0
            continue
        if "experts" in name:  # a token gives each expert its own weight, one of two on average
            torch.testing.assert_close(carried["exp_avg"].sum(0), entries["exp_avg"].sum(0), rtol=1e-3, atol=1e-5)
            for own, expected in zip(carried["exp_avg"], entries["exp_avg"], strict=True):
                assert (
                    float((own - expected).norm() / expected.norm()) < 0.2
                )  # the weights differ by what a random router of 0.02 says
        else:
            torch.testing.assert_close(carried["exp_avg"], entries["exp_avg"], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(carried["exp_avg_sq"], entries["exp_avg_sq"], rtol=2e-3, atol=1e-8)
        assert carried["step"] == 3
        assert MISSED not in carried


def test_experts_keep_their_parents_own_moments_and_steps():
    """Trained for 3 and for 5 steps: an expert's moments are its parent's, of half of the tokens; elsewhere they are the mean."""
    parents, optimizers = [pico.build("llama", seed=seed, **UNITS).train() for seed in range(2)], []
    for number, parent in enumerate(parents):
        optimizers.append(torch.optim.AdamW(parent.parameters(), lr=1e-3))
        for tokens in batches(3 + 2 * number, number):
            step(parent, optimizers[-1], tokens)
    fusion = ms.fuse_with_certificate(parents, ms.DeepFusion(weights=[0.7, 0.3], experts=True))
    optimizer = ms.fuse_optimizer(fusion, optimizers, parents)
    before, after = (
        [named_state(o, p) for o, p in zip(optimizers, parents, strict=True)],
        named_state(optimizer, fusion.model),
    )
    down, query = "model.layers.1.mlp.{}down_proj", "model.layers.1.self_attn.q_proj.weight"
    experts = after[down.format("experts.")]
    for number, own in enumerate(before):
        dense_one = own[down.format("") + ".weight"]
        torch.testing.assert_close(experts["exp_avg"][number], dense_one["exp_avg"] / 2)
        torch.testing.assert_close(experts["exp_avg_sq"][number], dense_one["exp_avg_sq"] / 4)
    assert experts["step"] == 5
    assert experts[MISSED][0].unique().tolist() == [2]
    assert experts[MISSED][1].unique().tolist() == [0]
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(after[query][key], 0.7 * before[0][query][key] + 0.3 * before[1][query][key])
    assert after[query]["step"] == 3
    router = fusion.model.model.layers[0].mlp.gate.weight
    assert not after["model.layers.0.mlp.gate.weight"]["exp_avg"].any()
    rows = router.detach().clone()
    step(fusion.model.train(), optimizer, batches(1, 5)[0])
    assert float((router.detach() - rows).abs().median()) == pytest.approx(1e-3, rel=0.05)  # a first step


def test_separate_experts_take_their_own_parents_state():
    parents = [pico.build("t5", seed=seed) for seed in range(2)]
    fusion = ms.fuse_with_certificate(parents, ms.DeepFusion(experts=True, experts_per_token=1))
    states = [
        {
            n: {"exp_avg": torch.randn_like(p), "step": torch.tensor(float(4 + seed))}
            for n, p in parent.named_parameters()
        }
        for seed, parent in enumerate(parents)
    ]
    found, block = fuse_state(fusion, states), "decoder.block.1.layer.2."
    for seed, state in enumerate(states):
        for part, scale in (("wi", 1.0), ("wo", 2.0)):  # the router gives each a half, so outputs are doubled
            expert, own = (
                found[f"{block}mlp.experts.expert_{seed}.{part}.weight"],
                state[f"{block}DenseReluDense.{part}.weight"],
            )
            torch.testing.assert_close(expert["exp_avg"], own["exp_avg"] / 2 / scale)
            assert expert["step"] == 4 + seed
            assert MISSED not in expert


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adafactor, torch.optim.Adagrad])
def test_other_optimizers_carry_over_too(optimizer):
    parents, optimizers = [pico.build("llama", seed=seed, **UNITS).train() for seed in range(2)], []
    for number, parent in enumerate(parents):
        options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        optimizers.append(optimizer(parent.parameters(), lr=1e-3, **options))
        step(parent, optimizers[-1], batches(1, number)[0])
    fusion = ms.fuse_with_certificate(parents, ms.DeepFusion(experts=True))
    fused = ms.fuse_optimizer(fusion, optimizers, parents)
    for tokens in batches(2, 7):
        step(fusion.model.train(), fused, tokens)
    assert all(p.isfinite().all() for p in fusion.model.parameters())


def test_refusals():
    small, wider = pico.build("llama"), pico.build("llama", **UNITS)
    with pytest.raises(ms.MeristemError, match=r"have one size; .*gate_proj.weight of parent 2 differs"):
        ms.fuse([small, wider], ms.DeepFusion(experts=True))
    with pytest.raises(ms.MeristemError, match=r"2 parents make 2 experts, .* experts_per_token=3; at most 2"):
        ms.fuse([small, small], ms.DeepFusion(experts=True, experts_per_token=3))
    with pytest.raises(ms.MeristemError, match="no mixture class is known for gpt2"):
        ms.fuse([pico.build("gpt2")] * 2, ms.DeepFusion(experts=True))
    with pytest.raises(ms.MeristemError, match="experts cannot be combined with norm or noise"):
        ms.DeepFusion(experts=True, norm="equalised")
