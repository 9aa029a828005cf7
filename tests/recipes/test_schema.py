"""Recipes are strict: each mistake is one clear message."""

from __future__ import annotations

import re

import pytest

import meristem as ms
from meristem.recipes.specs.schema import load_recipe, parse_recipe

TRAIN = {"train": {"model": {"model_type": "llama"}, "tokens": "4M", "learning_rate": 1e-3}}
IMAGES = {"task": "image-classification", "source": "digits"}
GROW = {"grow": {"from": "small", "method": "hypercloning", "width": 2}}


def test_fuse_options_reach_the_method():
    nodes = {"small": TRAIN, "both": {"fuse": {"from": ["small", "small"], "allow_differences": True, "noise": 0.2}}}
    fuse = parse_recipe({"nodes": nodes}).nodes["both"].fuse
    assert fuse.method(3) == ms.DeepFusion(noise=0.2, seed=3, allow_differences=True)
    plain = parse_recipe({"nodes": {"small": TRAIN, "both": {"fuse": {"from": ["small", "small"]}}}}).nodes["both"].fuse
    assert plain.method(0) == ms.DeepFusion()


def test_a_good_recipe():
    recipe = parse_recipe({"nodes": {"big": {"train": {"from": "grown", "tokens": "10k", "learning_rate": 1}},
                                     "grown": GROW, "small": TRAIN}, "race": {"challenger": "big", "baseline": "small"}})  # fmt: skip
    assert recipe.nodes["small"].train.tokens == 4_000_000
    assert recipe.order() == ["small", "grown", "big"]
    assert recipe.ancestors("grown") == ["small", "grown"]
    assert recipe.nodes["grown"].grow.build_methods() == [ms.HyperCloning(width=2)]


@pytest.mark.parametrize("content, message", [
    ({"nodes": {"small": TRAIN}, "rase": {}}, r"unknown key 'rase'; did you mean 'race'"),
    ({"nodes": {"small": {"train": {**TRAIN["train"], "learning_rat": 1}}}}, "did you mean 'learning_rate'"),
    ({"nodes": {"small": {"trian": {}}}}, "unknown key 'trian'; did you mean 'train'"),
    ({"data": {"sorce": "x"}, "nodes": {"small": TRAIN}}, "data.sorce: unknown key 'sorce'; did you mean 'source'"),
    ({"nodes": {"small": TRAIN, "grown": {"grow": {"form": "small", "method": "hypercloning", "width": 2}}}},
     r"nodes\.grown\.grow\.form: unknown key 'form'; did you mean 'from'"),
    ({"nodes": {"small": TRAIN, "grown": {"grow": {"method": "hypercloning", "width": 2}}}},
     r"nodes\.grown\.grow\.from: the key 'from' is missing"),
    ({"nodes": {"small": TRAIN, "grown": {"grow": {"from": "small", "method": "hypercloing"}}}},
     "unknown method 'hypercloing'; did you mean 'hypercloning'"),
    ({"nodes": {"small": TRAIN, "grown": {"grow": {**GROW["grow"], "widht": 2}}}}, "no option 'widht'; did you mean 'width'"),
    ({"nodes": {"grown": {"grow": {**GROW["grow"], "from": "smal"}}, "small": TRAIN}}, "which is no node; did you mean 'small'"),
    ({"nodes": {"a": {"grow": {**GROW["grow"], "from": "b"}}, "b": {"grow": {**GROW["grow"], "from": "a"}}}},
     "the nodes form a cycle: a -> b -> a"),
    ({"nodes": {}}, "nodes"),
    ({"nodes": {"small": {}}}, "a node is exactly one of `checkpoint`, `train`, `grow`, `fuse`, `average`, `assemble` and `ensemble`"),
    ({"nodes": {"small": {"checkpoint": {"sorce": "x"}}}}, "did you mean 'source'"),
    ({"nodes": {"small": {"train": {"tokens": 5, "learning_rate": 1}}}}, "give either `model`"),
    ({"nodes": {"small": {"train": {**TRAIN["train"], "tokens": "many"}}}}, "nodes.small.train.tokens"),
    ({"nodes": {"small": {"train": {**TRAIN["train"], "learning_rate": -1}}}}, "greater than 0"),
    ({"nodes": {"small": {"train": {**TRAIN["train"], "subnetwork": {"stagse": [1]}}}}}, "no option 'stagse'; did you mean 'stages'"),
    ({"nodes": {"small": {"train": {**TRAIN["train"], "subnetwork": {"kind": "layer_drop", "full_model": 0.1}}}}}, "no full_model"),
    ({"nodes": {"small": {"train": {**TRAIN["train"], "majority": {"kernles": 3}}}}}, "no option 'kernles'; did you mean 'kernels'"),
    ({"nodes": {"small": TRAIN, "both": {"fuse": {"from": ["small"]}}}}, "nodes.both.fuse.from"),
    ({"nodes": {"small": TRAIN, "both": {"fuse": {"from": ["small", "small"], "weights": [1, 1]}}}}, "sum to 1"),
    ({"nodes": {"small": TRAIN, "both": {"fuse": {"from": ["small", "other"]}}}}, "comes from 'other', which is no node"),
    ({"nodes": {"small": TRAIN, "all": {"assemble": {"from": ["small", "small"]}}}}, "one of them does not incubate a module"),
    ({"nodes": {"small": {"train": {**TRAIN["train"], "incubate": {"num_hidden_layers": 4, "modules": 2, "module": 0}}}}}, "needs `from`"),
    ({"nodes": {"small": TRAIN, "m": {"train": {"from": "small", "tokens": 1, "learning_rate": 1, "incubate": {
        "num_hidden_layers": 4, "modules": 2, "module": 2}}}}}, "numbered from 0 to 1"),
    ({"nodes": {"small": {"train": {**TRAIN["train"], "examples": 5}}}}, "give either `tokens` or `examples`"),
    ({"data": IMAGES, "nodes": {"small": TRAIN}}, "images have no tokens; say how many `examples`"),
    ({"data": {**IMAGES, "sequence_length": 5}, "nodes": {"small": TRAIN}}, "data.sequence_length: unknown key"),
    ({"data": {**IMAGES, "augmnt": []}, "nodes": {"small": TRAIN}}, "did you mean 'augment'"),
    ({"data": {"task": "image-clasification"}, "nodes": {"small": TRAIN}}, "data.task: unknown task 'image-clasification'; did you mean 'image-classification'"),
    ({"nodes": {"small": {**TRAIN, "resources": {"cpu": 2}}}}, "unknown key 'cpu'; did you mean 'cpus'"),
    ({"nodes": {"small": TRAIN, "grown": {**GROW, "resources": {"processes": 2}}}}, "only a train node or a decay"),
    ({"nodes": {"small": TRAIN, "m": {"train": {"from": "small", "tokens": 1, "learning_rate": 1, "incubate": {
        "num_hidden_layers": [4, 4, 4], "modules": 2, "module": 0}}}}}, "12 blocks in 3 stages make 3 to 12 modules, got 2"),
    ({"nodes": {"../evil": TRAIN}}, "use letters, digits"),
    ({"nodes": {"small": TRAIN}, "race": {"challenger": "smal", "baseline": "small"}}, "race names 'smal'"),
    ("text", "recipe"),
])  # fmt: skip
def test_mistakes(content, message):
    with pytest.raises(ms.MeristemError, match=message):
        parse_recipe(content)


def test_files(tmp_path):
    with pytest.raises(ms.MeristemError, match="cannot read recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("nodes: [")
    with pytest.raises(ms.MeristemError, match="is not valid YAML"):
        load_recipe(tmp_path / "bad.yaml")
    (tmp_path / "evil.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ms.MeristemError, match="is not valid YAML"):
        load_recipe(tmp_path / "evil.yaml")


WRONG = """
data: {source: python-stdlib, sequence_length: 32}
nodes:
  a: {train: {model: {model_type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}, tokens: 2k, learning_rate: 1e-3}}
"""


@pytest.mark.parametrize("old, new, words", [
    ("nodes:\n", "nodes:\n  a: {checkpoint: {source: x}}\n", "key 'a' is given twice, in line 4 and in line 5"),
    ("tokens: 2k", "tokens: 2k, tokens: 3k", "key 'tokens' is given twice"),
    ("nodes:", "seeds: []\nnodes:", "seeds: List should have at least 1 item after validation, not 0, found []"),
    ("learning_rate: 1e-3", "learning_rate: .inf", "nodes.a.train.learning_rate: it should be a finite number, found inf"),
    ("tokens: 2k", "tokens: -5", "nodes.a.train.tokens: it should be greater than 0, found -5"),
    ("  a:", "  yes:", "nodes: the name True is not text; put it in quotes"),
    ("nodes:", "race: {challenger: a, baseline: a}\nnodes:", "'a' cannot challenge itself"),
    ("1e-3", "1e-3, trainer: {bf16: maybe}", "bf16 is true or false, found 'maybe'"),
    ("1e-3", "1e-3, trainer: {gradient_accumulation_steps: two}", "gradient_accumulation_steps is a whole number, found 'two'"),
    ("1e-3", "1e-3, trainer: {max_grad_norm: .nan}", "max_grad_norm is a number, found nan"),
    ("1e-3", "1e-3, trainer: {fsdp_config: [1]}", "fsdp_config takes `key: value` entries, found [1]"),
    ("1e-3", "1e-3, trainer: {report_to: wanb}", "report_to: transformers knows no 'wanb'; did you mean 'wandb'"),
    ("1e-3", "1e-3, trainer: [1]", "nodes.a.train.trainer: expected `key: value` entries, found [1]"),
])  # fmt: skip
def test_what_a_hostile_file_is_told(tmp_path, old, new, words):
    file = tmp_path / "recipe.yaml"
    file.write_text(WRONG.replace(old, new, 1))
    with pytest.raises(ms.MeristemError, match=re.escape(words)):
        load_recipe(file)


def test_merged_keys_are_not_given_twice(tmp_path):
    """`<<` takes another mapping's keys, and its own count before those."""
    file = tmp_path / "recipe.yaml"
    more = "  b: {train: {<<: *own, seed: 1, learning_rate: 2e-3}}\n  c: {train: {<<: *second, seed: 2}}\n"
    file.write_text(
        WRONG.replace("{train: {model", "{train: &own {model") + more.replace("b: {train: {", "b: {train: &second {")
    )
    nodes = load_recipe(file).nodes
    assert [(nodes[n].train.seed, nodes[n].train.learning_rate) for n in "abc"] == [(0, 1e-3), (1, 2e-3), (2, 2e-3)]


def test_numbers_of_the_trainer_that_yaml_takes_for_text(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        WRONG.replace("1e-3", "1e-3, trainer: {adam_epsilon: 1e-9, logging_first_step: yes, report_to: none}")
    )
    own = load_recipe(file).nodes["a"].train.trainer
    assert own == {"adam_epsilon": 1e-9, "logging_first_step": True, "report_to": "none"}
