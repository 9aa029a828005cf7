"""A run that is killed goes on with the weights it had, for architectures whose tensors have other names on disk, too."""

from __future__ import annotations

import pytest
import torch
from small import MODEL, TRAIN, corpus
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

import meristem as ms
from meristem.checkpoints import open_model
from meristem.recipes import run
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.specs.train_spec import TrainSpec
from meristem.recipes.training.arguments import trainer_arguments
from meristem.recipes.training.guards import LossGuard
from meristem.recipes.training.trainer import NodeTrainer

VIT = {"model_type": "vit", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
       "patch_size": 4}  # fmt: skip
EXPERTS = {"num_local_experts": 2, "num_key_value_heads": 2}
DIGITS = {"task": "image-classification", "source": "digits", "eval_examples": 16}
# model, and what is added to the node. On disk a ViT's blocks have other names, and a mixture's experts lie one by one.
CASES = {
    "llama": (MODEL, {}),
    "vit": (VIT, {}),
    "vit, kernels": (VIT, {"majority": {"kernels": 2}}),
    "mixtral": ({**MODEL, "model_type": "mixtral", **EXPERTS}, {}),
    "qwen3_moe": ({**MODEL, "model_type": "qwen3_moe", "num_experts": 2, "moe_intermediate_size": 16, "num_experts_per_tok": 1, "num_key_value_heads": 2}, {}),
    "gpt2, tied": ({"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}, {}),
    "vit, compiled": (VIT, {"trainer": {"torch_compile": True, "torch_compile_backend": "eager"}}),
}  # fmt: skip


class Killed(Exception):
    pass


class KillAfter(TrainerCallback):
    """Ends the run behind this checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def left(out):
    return {
        file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*.safetensors") if file.is_file()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_with_the_same_bytes(name, tmp_path):
    model, more = CASES[name]
    own = {**TRAIN, "model": model, "evaluations": 4, **more}
    own |= {"learning_rate": 3e-3}
    if model is VIT:
        own.pop("tokens")
        own["examples"] = 64
    data = DIGITS if model is VIT else corpus(tmp_path)
    recipe = parse_recipe({"data": data, "nodes": {"net": {"train": own}}})
    whole = run(recipe, tmp_path / "whole")[0]["net"]
    steps = whole.examples // 4
    for step in (steps // 4, steps // 2 + 1):
        with pytest.raises(Killed):
            run(recipe, tmp_path / "killed", callbacks=[KillAfter(step)])
    again = run(recipe, tmp_path / "killed")[0]["net"]
    assert [p["eval_loss"] for p in again.curve] == [p["eval_loss"] for p in whole.curve]
    found, expected = left(tmp_path / "killed"), left(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert len(found) == (1 if "majority" in more else 2)
    assert found == expected


def test_a_checkpoint_that_lacks_a_tensor_is_not_gone_on_from(tmp_path):
    """It would be what it was before any training."""
    from safetensors.torch import load_file, save_file

    recipe = parse_recipe({"data": corpus(tmp_path), "nodes": {"net": {"train": {**TRAIN, "evaluations": 5}}}})
    with pytest.raises(Killed):
        run(recipe, tmp_path / "out", callbacks=[KillAfter(4)])
    (file,) = (tmp_path / "out").glob("net-*/trainer/checkpoint-4/model.safetensors")
    tensors = load_file(file)
    lost = "model.layers.1.mlp.up_proj.weight"
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ms.MeristemError, match=rf"checkpoint to resume has no tensor '{lost}' \(1 such\)"):
        run(recipe, tmp_path / "out")


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "deepseek_v3", "olmoe", "gpt_oss", "llama4_text"])
def test_any_loader_reads_a_checkpoint_on_the_way(model_type, tmp_path):
    """A node that diverged names its last good checkpoint: transformers opens it, and Meristem does, with every number."""
    few = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32,
           "num_key_value_heads": 2, "moe_intermediate_size": 16, "head_dim": 8, "num_local_experts": 2}  # fmt: skip
    known = AutoConfig.for_model(model_type).to_dict()
    entries = {key: value for key, value in few.items() if key in known}
    if "n_routed_experts" in known:
        entries |= {
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
        }
        entries |= {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    if "num_experts" in known:
        entries |= {"num_experts": 2, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **entries))
    spec = TrainSpec(model=MODEL, tokens=1280, learning_rate=1e-3)
    trainer = NodeTrainer(
        model=model, args=trainer_arguments(spec, tmp_path / "trainer", 4, 0), eval_dataset=[], amplitudes={}, rates={}, guard=LossGuard("net", tmp_path)
    )  # fmt: skip
    trainer.save_model(str(tmp_path / "checkpoint"))
    expected = model.state_dict()
    for opened in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint"),
        open_model(str(tmp_path / "checkpoint")),
    ):
        state = opened.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name].float(), tensor.float()) for name, tensor in expected.items())
    for parameter in model.parameters():
        parameter.data.zero_()
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint").state_dict()
    assert all(torch.equal(tensor.float(), again[name].float()) for name, tensor in model.state_dict().items())
