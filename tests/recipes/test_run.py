"""Recipes as a user runs them: costs, caching, carried optimizer state, and a kill at any moment."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from transformers import TrainerCallback

import meristem as ms
from meristem.anatomy.flops import training_flops
from meristem.checkpoints import open_model
from meristem.recipes import run
from meristem.recipes.diagnose import diagnose
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks.language import causal_language_model, example_tokens
from meristem.recipes.training.left import load_state

SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
FAST = {"batch_size": 4, "evaluations": 3}
TOKENS = example_tokens(32, 256)


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    return str(file)


def recipe_for(corpus_file: str, tokens: int = 1280, **grow) -> dict:
    return {
        "data": {"source": corpus_file, "sequence_length": 32, "eval_sequences": 8},
        "nodes": {
            "small": {"train": {"model": SMALL, "tokens": tokens, "learning_rate": 3e-3, **FAST}},
            "grown": {"grow": {"from": "small", "method": "hypercloning", "width": 2, **grow}},
            "big": {"train": {"from": "grown", "tokens": tokens, "learning_rate": 1e-3, **FAST}},
        },
    }


def test_several_stages_carry_the_optimizer_through_each(corpus_file, tmp_path):
    """64 -> 96 -> 128 -> 256 of the guide, at a quarter of the size."""
    sizes = [(24, 3, 48), (32, 4, 64), (64, 8, 128)]
    train = {"tokens": 1280, "learning_rate": 1e-3, "schedule": "constant_with_warmup", "warmup": 0.0, **FAST}
    nodes = {"w16": {"train": {"model": SMALL, **train}}}
    parent = "w16"
    for hidden, heads, ffn in sizes:
        target = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": ffn}
        nodes[f"grown{hidden}"] = {"grow": {"from": parent, "method": "lemon", "optimizer": "carry", **target}}
        nodes[f"w{hidden}"] = {"train": {"from": f"grown{hidden}", **train}}
        parent = f"w{hidden}"
    recipe = {"data": recipe_for(corpus_file)["data"], "nodes": nodes}
    done = run(parse_recipe(recipe), tmp_path)[0]
    stages = [done["w16"], *(done[f"w{hidden}"] for hidden, _, _ in sizes)]
    for before, after in itertools.pairwise(stages):
        assert after.curve[0]["eval_loss"] == pytest.approx(before.metrics["eval_loss"], abs=1e-4)
        assert after.metrics["eval_loss"] < before.metrics["eval_loss"]
    state = load_state(next(tmp_path.glob("grown64-*")) / "optimizer.safetensors")
    assert state["model.embed_tokens.weight"]["exp_avg"].shape[-1] == 64
    assert float(state["model.embed_tokens.weight"]["step"]) == 30


def test_a_node_that_trains_sub_networks_counts_what_it_ran(corpus_file, tmp_path):
    recipe = recipe_for(corpus_file)
    deep = {**SMALL, "num_hidden_layers": 4}
    train = {"model": deep, "tokens": 2560, "learning_rate": 3e-3, **FAST}
    recipe["nodes"] = {
        "full": {"train": train},
        "raptr": {"train": {**train, "subnetwork": {"stages": [2, 4]}}},
        "two_stage": {"train": {**train, "subnetwork": {"kind": "bottom_layers", "stride": 2, "until": 0.5}}},
    }
    nodes = run(parse_recipe(recipe), tmp_path)[0]
    full, raptr, two_stage = nodes["full"], nodes["raptr"], nodes["two_stage"]
    blocks = 1 - training_flops(
        causal_language_model({**deep, "num_hidden_layers": 1}, 256, 32, 0), TOKENS
    ) / training_flops(causal_language_model(deep, 256, 32, 0), TOKENS)  # the share of three of four blocks
    assert raptr.flops / full.flops == pytest.approx(1 - blocks / 3, rel=1e-6)  # half the steps without two blocks
    assert two_stage.flops < full.flops
    assert raptr.curve[-1]["flops"] == raptr.flops
    assert raptr.metrics["eval_loss"] < raptr.curve[0]["eval_loss"]


def test_a_node_that_trains_kernels_leaves_a_plain_model(corpus_file, tmp_path):
    recipe = recipe_for(corpus_file)
    recipe["nodes"]["small"]["train"]["majority"] = {"kernels": 2, "granularity": "layer"}
    nodes = run(parse_recipe(recipe), tmp_path)[0]
    small = nodes["small"]
    assert small.metrics["eval_loss"] < small.curve[0]["eval_loss"]
    assert nodes["big"].curve[0]["eval_loss"] == pytest.approx(
        small.metrics["eval_loss"], abs=1e-3
    )  # annealed to the mean
    recipe["nodes"]["further"] = {
        "train": {**recipe["nodes"]["big"]["train"], "from": "big", "majority": {"kernels": 2}}
    }
    further = run(parse_recipe(recipe), tmp_path)[0]["further"]  # the kernels begin with moments of their own
    before = nodes["big"].metrics["eval_loss"]
    assert further.curve[0]["eval_loss"] == pytest.approx(before, abs=1e-3)  # a clone: nothing of the training is lost
    assert further.metrics["eval_loss"] < before + 0.1
    recipe["nodes"]["grown"]["grow"]["optimizer"] = "carry"
    with pytest.raises(ms.MeristemError, match="optimizer: reset"):
        run(parse_recipe(recipe), tmp_path)


def test_a_tree_of_fusions_counts_every_node(corpus_file, tmp_path):
    recipe = recipe_for(corpus_file)
    small = {"model": SMALL, "tokens": 1280, "learning_rate": 3e-3, **FAST}
    recipe["nodes"] = {
        "a": {"train": small},
        "b": {"train": {**small, "seed": 1}},
        "both": {"fuse": {"from": ["a", "b"], "optimizer": "carry"}},
        "middle": {"train": {"from": "both", "tokens": 1280, "learning_rate": 1e-3, **FAST}},
        "twice": {"fuse": {"from": ["middle", "middle"]}},
        "large": {"train": {"from": "twice", "tokens": 1280, "learning_rate": 1e-3, **FAST}},
    }
    recipe = parse_recipe(recipe)
    done = run(recipe, tmp_path)[0]
    assert done["a"].metrics != done["b"].metrics
    assert recipe.ancestors("large") == list(recipe.nodes)
    assert not done["both"].details["exact"]
    assert done["twice"].details["certificate"]["holds"]
    assert done["middle"].parameters < done["large"].parameters
    assert done["large"].curve[0]["eval_loss"] == pytest.approx(done["middle"].metrics["eval_loss"], abs=1e-4)
    assert done["middle"].metrics["eval_loss"] < done["a"].metrics["eval_loss"]


def test_a_network_is_incubated_in_modules_and_assembled(corpus_file, tmp_path):
    train = {"tokens": 1280, "learning_rate": 3e-3, **FAST}
    division = {"num_hidden_layers": 5, "modules": 2}
    nodes = {"meta": {"train": {"model": {**SMALL, "num_hidden_layers": 2}, **train}}}
    for module in range(2):
        incubate = {**division, "module": module, "start": "clone" if module else "random"}
        nodes[f"m{module}"] = {"train": {"from": "meta", "incubate": incubate, **train}}
    nodes["large"] = {"assemble": {"from": ["m1", "m0"]}}
    nodes["tuned"] = {"train": {"from": "large", **train}}
    done = run(parse_recipe({"data": recipe_for(corpus_file)["data"], "nodes": nodes}), tmp_path)[0]
    assert done["m0"].metrics["eval_loss"] < done["m0"].curve[0]["eval_loss"]
    assert done["tuned"].metrics["eval_loss"] < done["tuned"].curve[0]["eval_loss"]
    large = next(tmp_path.glob("large-*"))
    assert json.loads((large / "model" / "config.json").read_text())["num_hidden_layers"] == 5
    assert json.loads((large / "model" / "meristem.json").read_text())["methods"][0]["depths"] == [3, 2]
    assert done["m0"].details["incubation"]["meta"] == done["m1"].details["incubation"]["meta"]
    whole = training_flops(causal_language_model({**SMALL, "num_hidden_layers": 4}, 256, 32, 0), TOKENS)
    assert done["m0"].flops < 40 * whole  # nothing behind the module computes weight gradients


def test_a_cached_prefix_changes_the_cost_and_nothing_else(tmp_path):
    vit = {"model_type": "vit", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 2, "patch_size": 4}  # fmt: skip
    train = {"batch_size": 16, "learning_rate": 1e-3, "evaluations": 2}
    incubate = {"num_hidden_layers": 4, "modules": 2, "module": 1}
    nodes = {
        "meta": {"train": {"model": vit, "examples": 320, **train}},
        "plain": {"train": {"from": "meta", "examples": 960, "incubate": incubate, **train}},
        "cached": {"train": {"from": "meta", "examples": 960, "incubate": {**incubate, "cache_prefix": True}, **train}},
    }
    data = {"task": "image-classification", "source": "digits", "fraction": 0.1, "eval_examples": 50}
    done = run(parse_recipe({"data": data, "nodes": nodes}), tmp_path)[0]
    plain, cached = done["plain"], done["cached"]
    assert [p["eval_loss"] for p in cached.curve] == [p["eval_loss"] for p in plain.curve]
    assert cached.metrics["eval_accuracy"] == plain.metrics["eval_accuracy"]
    assert 0.8 * plain.flops < cached.flops < plain.flops
    with pytest.raises(ms.MeristemError, match="never repeat"):
        parse_recipe({"data": {**data, "augment": ["flip"]}, "nodes": nodes})


def test_stages_are_incubated_in_a_recipe(tmp_path):
    resnet = {
        "model_type": "resnet",
        "hidden_sizes": [4, 8],
        "depths": [1, 1],
        "embedding_size": 4,
        "layer_type": "basic",
    }
    train = {"batch_size": 16, "learning_rate": 1e-2, "evaluations": 2}
    division = {"num_hidden_layers": [2, 3], "modules": 2}
    nodes = {"meta": {"train": {"model": resnet, "examples": 1600, **train}}}
    for module in range(2):
        own = {**division, "module": module}
        nodes[f"m{module}"] = {"train": {"from": "meta", "examples": 1600, "incubate": own, **train}}
    nodes["large"] = {"assemble": {"from": ["m0", "m1"]}}
    nodes["tuned"] = {"train": {"from": "large", "examples": 1600, **train}}
    data = {"task": "image-classification", "source": "digits", "augment": ["crop"]}
    done = run(parse_recipe({"data": data, "nodes": nodes}), tmp_path)[0]
    large = next(tmp_path.glob("large-*"))
    assert json.loads((large / "model" / "config.json").read_text())["depths"] == [2, 3]
    assert done["tuned"].metrics["eval_accuracy"] > 0.3
    assert done["tuned"].tokens == 0


def test_growth_points_are_diagnosed(corpus_file, tmp_path):
    content = recipe_for(corpus_file)
    content["nodes"]["b"] = {"train": {**content["nodes"]["small"]["train"], "seed": 1}}
    content["nodes"]["both"] = {"fuse": {"from": ["small", "b"]}}
    content["nodes"]["further"] = {"train": {**content["nodes"]["small"]["train"], "model": None, "from": "both"}}
    content["nodes"]["twice"] = {"fuse": {"from": ["small", "small"]}}
    recipe = parse_recipe(content)
    (grown,) = diagnose(recipe, "grown", tmp_path)
    (fused,) = diagnose(recipe, "both", tmp_path, bound=0.2)
    (twice,) = diagnose(recipe, "twice", tmp_path)
    assert twice.junction.loss_before == pytest.approx(twice.junction.loss_after, abs=1e-4)
    assert fused.optimizer == "adam"
    rate = recipe.nodes["further"].train.learning_rate
    assert fused.warmup == {"further": math.ceil(rate / fused.learning_rate)}
    assert grown.junction.loss_before == pytest.approx(grown.junction.loss_after, abs=1e-4)
    assert grown.junction.cosine > fused.junction.cosine
    assert fused.learning_rate == pytest.approx(0.2 / fused.junction.conflict)
    for parent in ("small", "b"):
        content["nodes"][parent]["train"]["trainer"] = {"optim": "sgd"}
    (plain,) = diagnose(parse_recipe(content), "both", tmp_path)
    assert plain.optimizer == "sgd"
    for node, words in (("small", "train node"), ("groun", "did you mean 'grown'")):
        with pytest.raises(ms.MeristemError, match=words):
            diagnose(recipe, node, tmp_path)


def test_nodes_costs_and_caching(corpus_file, tmp_path, capsys):
    recipe = parse_recipe(recipe_for(corpus_file, optimizer="carry"))
    nodes = run(recipe, tmp_path)[0]
    small, grown, big = nodes["small"], nodes["grown"], nodes["big"]
    assert big.curve[0]["eval_loss"] == pytest.approx(small.metrics["eval_loss"], abs=1e-5)  # no loss at the growth
    assert big.metrics["eval_loss"] < small.metrics["eval_loss"] < small.curve[0]["eval_loss"]
    assert small.tokens == 1280
    assert small.curve[-1]["flops"] == small.flops > 0
    assert big.flops > 2 * small.flops
    assert grown.flops == 0
    assert grown.details["certificate"]["holds"]
    directory = next(tmp_path.glob("grown-*"))
    steps = {int(entries["step"]) for entries in load_state(directory / "optimizer.safetensors").values()}
    assert steps == {10}
    assert json.loads((directory / "model" / "meristem.json").read_text())["methods"][0]["width"] == 2

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("node.json")}
    assert run(recipe, tmp_path) == {0: nodes}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("node.json")} == before
    assert capsys.readouterr().err.count("done before") == 3

    changed = recipe_for(corpus_file, optimizer="carry")
    changed["nodes"]["big"]["train"]["learning_rate"] = 2e-3
    again = run(parse_recipe(changed), tmp_path)[0]
    assert again["small"] == small
    assert again["big"].hash != big.hash


def test_seeds_differ_and_repeat(corpus_file, tmp_path):
    content = {**recipe_for(corpus_file, tokens=256), "seeds": [0, 1]}
    del content["nodes"]["grown"], content["nodes"]["big"]
    first, second = (run(parse_recipe(content), tmp_path / place) for place in "ab")
    losses = [first[seed]["small"].metrics["eval_loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]
    assert losses == [second[seed]["small"].metrics["eval_loss"] for seed in (0, 1)]


def test_every_trainer_argument_is_reachable_and_checked(corpus_file, tmp_path):
    content = recipe_for(corpus_file, tokens=256)
    content["nodes"] = {"small": content["nodes"]["small"]}
    content["nodes"]["small"]["train"]["trainer"] = {"gradient_accumulation_steps": 2}
    run(parse_recipe(content), tmp_path)
    content["nodes"]["small"]["train"]["trainer"] = {"gradient_acumulation_steps": 2}
    with pytest.raises(ms.MeristemError, match="did you mean 'gradient_accumulation_steps'"):
        run(parse_recipe(content), tmp_path)


@pytest.mark.parametrize("entries, message", [
    ({"model_type": "lama"}, "model_type 'lama' is unknown; did you mean 'llama'"),
    ({"model_type": "llama", "hidden_sise": 3}, "no config entry 'hidden_sise'; did you mean 'hidden_size'"),
    ({"model_type": "llama", "hidden_size": "wide"}, "llama cannot be built"),
    ({"model_type": "gpt_neox", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "head_dim": 16},
     "gpt_neox has no config entry 'head_dim'"),  # its positions would read it, and its heads would not
])  # fmt: skip
def test_a_model_that_cannot_be_built(entries, message):
    with pytest.raises(ms.MeristemError, match=message):
        causal_language_model(entries, 256, 32, 0)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen2", "olmoe"])
def test_an_entry_that_a_class_reads_and_its_config_does_not_list(model_type):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    model = causal_language_model({"model_type": model_type, **sizes, "head_dim": 16}, 256, 32, 0)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (4 * 16, 32)
    assert model.config.to_dict()["head_dim"] == 16


def test_flops_are_counted_attention_included():
    """6 N T for the matrices (embeddings free), and 2 x 2 products of T x T x hidden forward, 2.5 times that backward."""
    config = {**SMALL, "hidden_size": 32, "intermediate_size": 64}
    model = causal_language_model(config, 256, 64, 0)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    length = 64
    attention = 2 * 2 * length * length * 32
    counted = training_flops(model, example_tokens(length, 256))
    assert counted == pytest.approx(6 * matrices * length + 3.5 * attention, rel=0.01)
    assert all(p.grad is None for p in model.parameters())


def test_kill_9_in_mid_run_then_the_same_command(corpus_file, tmp_path):
    """Same final metrics as an undisturbed run, and no finished node repeated."""
    content = recipe_for(corpus_file, tokens=128 * 300, optimizer="carry")
    content["nodes"]["big"]["train"]["scale_learning_rate"] = True
    for name in ("small", "big"):
        content["nodes"][name]["train"]["evaluations"] = 30
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    undisturbed = run(parse_recipe(content), tmp_path / "undisturbed")[0]
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "meristem.cli.main", "run", str(file), "--out", str(out)]
    stops = (
        "trainer/checkpoint-50/trainer_state.json",
        "model/meristem.json",
        "trainer/checkpoint-100/trainer_state.json",
    )
    for node, sign in zip(("small", "grown", "big"), stops, strict=True):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not list(out.glob(f"{node}-*/{sign}")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("small-*/node.json")}
    assert finished
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in out.glob("small-*/node.json")} == finished
    assert "small (seed 0): done before" in done.stderr
    again = run(parse_recipe(content), out)[0]
    for name, node in undisturbed.items():
        assert again[name].metrics == node.metrics, name
        assert [p["eval_loss"] for p in again[name].curve] == [p["eval_loss"] for p in node.curve], name
    for one, other in zip(
        *((d.glob("big-*/model/model.safetensors")) for d in (out, tmp_path / "undisturbed")), strict=True
    ):
        assert one.read_bytes() == other.read_bytes()


def test_a_fused_node_that_is_interrupted_goes_on_with_its_blocks_own_steps(corpus_file, tmp_path):
    small = {"train": {"model": SMALL, "tokens": 1280, "learning_rate": 3e-3, **FAST}}
    nodes = {
        "a": small,
        "b": {"train": {**small["train"], "seed": 1}},
        "both": {"fuse": {"from": ["a", "b"], "optimizer": "carry"}},
    }
    content = {"data": recipe_for(corpus_file)["data"], "nodes": nodes}
    big = {"train": {"from": "both", "tokens": 128 * 30, "learning_rate": 1e-3, **FAST}}
    whole = {**content, "nodes": {**nodes, "big": big}}

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 25:
                raise KeyboardInterrupt

    undisturbed = run(parse_recipe(whole), tmp_path / "undisturbed")[0]["big"]
    run(parse_recipe(content), tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(parse_recipe(whole), tmp_path / "stopped", callbacks=[Interrupt()])
    again = run(parse_recipe(whole), tmp_path / "stopped")[0]["big"]
    assert again.metrics == undisturbed.metrics
    one, other = (
        load_state(next((tmp_path / place).glob("big-*")) / "optimizer.safetensors")
        for place in ("undisturbed", "stopped")
    )
    assert any("missed_steps" in entries for entries in one.values())
    for name, entries in one.items():
        for key, value in entries.items():
            assert torch.equal(value, other[name][key]), (name, key)


def word_tokenizer(directory, words):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>").save_pretrained(directory)
    return str(directory)


def test_a_tokenizer_travels_with_the_models(corpus_file, tmp_path):
    content = recipe_for(corpus_file, tokens=256)
    del content["nodes"]["big"]
    words = ["<unk>", "<eos>", "times", "is", ".", *map(str, range(50))]
    content["data"]["tokenizer"] = word_tokenizer(tmp_path / "tokenizer", words)
    run(parse_recipe(content), tmp_path / "out")
    for node in ("small", "grown"):
        (model,) = (tmp_path / "out").glob(f"{node}-*/model")
        assert (model / "tokenizer.json").exists()
        assert json.loads((model / "config.json").read_text())["vocab_size"] == len(words)


def test_a_users_callback_is_called(corpus_file, tmp_path):
    from transformers import TrainerCallback

    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1

    content, count = recipe_for(corpus_file, tokens=256), Count()
    content["nodes"] = {"small": content["nodes"]["small"]}
    run(parse_recipe(content), tmp_path, callbacks=[count])
    assert count.steps == 2


def test_a_recipe_starts_from_a_checkpoint(corpus_file, tmp_path):
    model = causal_language_model(SMALL, 256, 32, 0)
    model.save_pretrained(tmp_path / "there")
    content = recipe_for(corpus_file, tokens=256)
    content["nodes"]["small"] = {"checkpoint": {"source": str(tmp_path / "there")}}
    done = run(parse_recipe(content), tmp_path / "out")[0]
    assert (done["small"].flops, done["small"].examples) == (0, 0)
    assert done["big"].examples == 8
    copy = next((tmp_path / "out").glob("small-*/model"))
    assert ms.verify(model.eval(), open_model(str(copy))).holds
    causal_language_model(SMALL, 256, 32, 1).save_pretrained(tmp_path / "there")
    assert run(parse_recipe(content), tmp_path / "out")[0]["small"].hash != done["small"].hash
    content["nodes"]["small"] = {"checkpoint": {"source": str(tmp_path / "nowhere")}}
    with pytest.raises(ms.MeristemError, match="nowhere"):
        run(parse_recipe(content), tmp_path / "out")


def test_weights_are_trained_in_float32_however_they_are_stored(corpus_file, tmp_path):
    causal_language_model(SMALL, 256, 32, 0).bfloat16().save_pretrained(tmp_path / "there")
    content = recipe_for(corpus_file, tokens=256)
    content["nodes"]["small"] = {"checkpoint": {"source": str(tmp_path / "there")}}
    content["nodes"]["tuned"] = {"train": {**content["nodes"]["big"]["train"], "from": "small", "learning_rate": 1e-6}}
    run(parse_recipe(content), tmp_path / "out")
    start, tuned = (open_model(str(next((tmp_path / "out").glob(f"{name}-*/model")))) for name in ("small", "tuned"))
    assert (start.dtype, tuned.dtype) == (torch.bfloat16, torch.float32)
    moved = [not torch.equal(a.float(), b) for a, b in zip(start.parameters(), tuned.parameters(), strict=True)]
    assert all(moved)


def test_the_vocabulary_must_fit(corpus_file, tmp_path):
    content = recipe_for(corpus_file)
    content["nodes"]["small"]["train"]["model"] = {**SMALL, "vocab_size": 100}
    with pytest.raises(ms.MeristemError, match="the data has 256 tokens, the model's vocabulary 100"):
        run(parse_recipe(content), tmp_path)
