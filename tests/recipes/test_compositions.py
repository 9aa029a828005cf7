"""Every pair of methods and ways to run either works or is refused when the recipe is read."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import MODEL, TRAIN, corpus

import meristem as ms
from meristem.checkpoints import open_model
from meristem.recipes import run
from meristem.recipes.node import load_result
from meristem.recipes.plan import plan_jobs
from meristem.recipes.specs.conflicts import CONFLICTS
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task

FSDP = {"fsdp": True, "fsdp_config": {
    "state_dict_type": "FULL_STATE_DICT", "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
}}  # fmt: skip
MIXTURE = {**MODEL, "model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
# What each feature adds to a train node; load_balancing is of a mixture of experts.
FEATURES = {
    "subnetwork": {"subnetwork": {"kind": "layer_drop", "rate": 0.4}},
    "majority": {"majority": {"kernels": 2}},
    "incubate": {"incubate": {"num_hidden_layers": 4, "modules": 2, "module": 1}},
    "cache_prefix": {"incubate": {"num_hidden_layers": 4, "modules": 2, "module": 1, "cache_prefix": True}},
    "carry": {},
    "scale_learning_rate": {"scale_learning_rate": True},
    "bf16": {"trainer": {"bf16": True}},
    "checkpointing": {"trainer": {"activation_checkpointing": True}},
    "accumulation": {"trainer": {"gradient_accumulation_steps": 2}},
    "compile": {"trainer": {"torch_compile": True, "torch_compile_backend": "eager"}},
    "spikes": {"spikes": {"window": 2}},
    "early_stop": {"early_stop": {"patience": 3}},
    "documents": {},
    "distill": {"distill": {"teacher": "small"}},
    "load_balancing": {"load_balancing": 0.01},
    "processes": {},
    "fsdp": {"trainer": FSDP},
}
ALONE = [name for name in FEATURES if name not in ("processes", "fsdp")]
SHARED = [(way, other) for way in ("processes", "fsdp") for other in ALONE]


def conflict(pair):
    return CONFLICTS.get(min(pair), {}).get(max(pair))


def content_for(pair, folder):
    """A node with both features, on a grown network (incubated: on a meta network)."""
    own = {**TRAIN, "examples": 32, "batch_size": 8, "evaluations": 1}
    for name in ("model", "tokens"):
        own.pop(name)
    for feature in pair:
        more = dict(FEATURES[feature])
        own["trainer"] = {**own.get("trainer", {}), **more.pop("trainer", {})}
        own |= more
    state = "carry" if "carry" in pair else "reset"
    mixture = "load_balancing" in pair
    if mixture and "fsdp" in pair:
        own["trainer"]["fsdp_config"] = {
            **FSDP["fsdp_config"],
            "transformer_layer_cls_to_wrap": ["MixtralDecoderLayer"],
        }
    nodes = {
        "small": {"train": {**TRAIN, "model": MIXTURE if mixture else MODEL, "tokens": 256}},
        "grown": {"grow": {"from": "small", "method": "hypercloning", "width": 2, "optimizer": state}},
        "node": {"train": {**own, "from": "grown"}},
    }
    if {"processes", "fsdp"} & set(pair):
        nodes["node"]["resources"] = {"processes": 2}
    data = {"source": str(folder / "text.txt"), "sequence_length": 32, "eval_sequences": 8}
    data |= {"documents": "within"} if "documents" in pair else {}
    return {"data": data, "nodes": nodes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("compositions")
    corpus(place, lines=300)
    return place


def check(directory, pair):
    result = load_result(directory)
    assert result is not None, (directory / "error-0").read_text() if (directory / "error-0").exists() else pair
    assert math.isfinite(result.metrics["eval_loss"])
    assert result.examples == 32
    model = open_model(str(directory / "model"))  # a plain network, whatever trained it
    assert result.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (directory / "optimizer.safetensors").exists() == ("majority" not in pair)


@pytest.mark.everyday(seconds=7)  # each feature at least once
@pytest.mark.parametrize("pair", list(itertools.combinations(ALONE, 2)), ids="-".join)
def test_every_pair_in_one_process(pair, folder):
    if set(pair) == {"incubate", "cache_prefix"}:
        pytest.skip("the one is a part of the other")
    content, why = content_for(pair, folder), conflict(pair)
    if why is None and "cache_prefix" in pair:
        why = conflict(("incubate", next(name for name in pair if name != "cache_prefix")))
    if why:
        with pytest.raises(ms.MeristemError, match="cannot be combined"):
            parse_recipe(content)
        return
    run(parse_recipe(content), folder / "out")
    recipe = parse_recipe(content)
    job = plan_jobs(recipe, folder / "out", open_task(recipe.data).fingerprint)[-1]
    check(job.directory, pair)


@pytest.mark.dist
@pytest.mark.parametrize("way", ["processes", "fsdp"])
def test_every_pair_in_two_processes(way, folder, tmp_path):
    """DDP, and FSDP2, with everything else: all nodes in one start of two processes."""
    directories = {}
    for _, other in (pair for pair in SHARED if pair[0] == way):
        content, why = content_for((way, other), folder), conflict((way, other))
        if why:
            with pytest.raises(ms.MeristemError, match="cannot be combined"):
                parse_recipe(content)
            continue
        recipe = parse_recipe(content)
        parents = recipe.model_copy(update={"nodes": {name: recipe.nodes[name] for name in ("small", "grown")}})
        run(parents, folder / "out")
        job = plan_jobs(recipe, folder / "out", open_task(recipe.data).fingerprint)[-1]
        place = tmp_path / other / job.directory.name
        place.parent.mkdir()
        for parent in {*job.parents, *(small.name for small in (folder / "out").glob("small-*"))}:
            (place.parent / parent).symlink_to(folder / "out" / parent)
        ms_job = type(job)(**{**vars(job), "directory": place})
        ms_job.save()
        directories[other] = place
    worker, here = Path(__file__).with_name("compositions_worker.py"), Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(worker)]
    paths = os.pathsep.join([*([str(here / "fsdp_on_cpu")] if way == "fsdp" else []), *(p for p in sys.path if p)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "SHARDED": str(tmp_path / "sharded")}
    done = subprocess.run(
        [*command, *map(str, directories.values())],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "sharded").exists() == (way == "fsdp")
    for other, place in directories.items():
        check(place, (way, other))


def test_kernels_of_an_incubated_module_leave_the_other_blocks_alone(folder):
    """Of the hybrid, only the module has kernels; the frozen blocks are the meta network's, bit for bit."""
    content = content_for(("majority", "incubate"), folder)
    recipe = parse_recipe(content)
    run(recipe, folder / "out")
    jobs = plan_jobs(recipe, folder / "out", open_task(recipe.data).fingerprint)
    meta, hybrid = (open_model(str(job.directory / "model")) for job in jobs[1:])
    assert len(hybrid.model.layers) == 3
    for name, tensor in meta.model.layers[0].state_dict().items():
        assert torch.equal(tensor, hybrid.model.layers[0].state_dict()[name])


def test_these_tests_hold_all_55_pairs():
    """Of the eleven that the page names. FSDP2's tests run in two processes, so the pair of it and `processes` is each of them."""
    eleven = [
        "subnetwork",
        "majority",
        "incubate",
        "carry",
        "scale_learning_rate",
        "bf16",
        "checkpointing",
        "accumulation",
        "compile",
    ]
    eleven += ["processes", "fsdp"]
    tested = {frozenset(pair) for pair in [*itertools.combinations(ALONE, 2), *SHARED]}
    tested |= {
        frozenset(("processes", "fsdp"))
        for _, other in SHARED
        if content_for(("fsdp", other), Path())["nodes"]["node"]["resources"]
    }
    pairs = {frozenset(pair) for pair in itertools.combinations(eleven, 2)}
    assert len(pairs) == 55
    assert pairs <= tested


def test_every_method_says_what_it_cannot_go_with():
    known = {*FEATURES, "fresh", "train_only"}  # the last two want a grown model: tests/recipes/test_train_only.py
    assert all(name in known and other in known and name < other for name, own in CONFLICTS.items() for other in own)
    assert MODEL["num_hidden_layers"] == 2
