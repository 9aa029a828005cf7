"""Parents fused as the experts of one mixture."""

from __future__ import annotations

import pico
import pytest
import torch
import transformers
from command_line import meristem
from test_upcycle import UNITS, dense, error, reloaded

import meristem as ms


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


def test_refusals():
    small, wider = pico.build("llama"), pico.build("llama", **UNITS)
    with pytest.raises(ms.MeristemError, match=r"have one size; .*gate_proj.weight of parent 2 differs"):
        ms.fuse([small, wider], ms.DeepFusion(experts=True))
    with pytest.raises(ms.MeristemError, match=r"2 parents make 2 experts, .* experts_per_token=3; at most 2"):
        ms.fuse([small, small], ms.DeepFusion(experts=True, experts_per_token=3))
    with pytest.raises(ms.MeristemError, match="no mixture class is known for gpt2"):
        ms.fuse([pico.build("gpt2")] * 2, ms.DeepFusion(experts=True))
    with pytest.raises(ms.MeristemError, match="experts and norm or noise do not go together"):
        ms.DeepFusion(experts=True, norm="equalised")
