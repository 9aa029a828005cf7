"""The same recipe on every executor; crashes, kills and bad input on each."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

import meristem as ms
from meristem.recipes import run, status
from meristem.recipes.executors import build_executor
from meristem.recipes.executors.executor import LOG, run_node
from meristem.recipes.nodes.perform import NodeCrashed
from meristem.recipes.pages.table import NodeTable
from meristem.recipes.run import plan_jobs
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task
from meristem.recipes.training.left import load_state

pytestmark = pytest.mark.dist

MODEL = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2}  # fmt: skip
EXECUTORS = {
    "local": {"slots": 2},
    "ray": {"slots": 2},
    "slurm": {"cluster": "local", "timeout_min": 5, "poll_seconds": 0.2},
}


def executor(kind, folder):
    return build_executor(kind, {**EXECUTORS[kind], **({"folder": folder / "submitit"} if kind == "slurm" else {})})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    train = {"learning_rate": 3e-3, "batch_size": 4}
    nodes = {"meta": {"train": {"model": MODEL, "tokens": 1280, "evaluations": 2, **train}}}
    for module, steps in enumerate((60, 600)):
        incubate = {"num_hidden_layers": 4, "modules": 2, "module": module}
        nodes[f"m{module}"] = {
            "train": {"from": "meta", "examples": 4 * steps, "evaluations": steps // 5, "incubate": incubate, **train}
        }
    nodes["large"] = {"assemble": {"from": ["m0", "m1"]}}
    return parse_recipe({"data": {"source": str(file), "sequence_length": 32, "eval_sequences": 8}, "nodes": nodes})


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("here")
    return out, run(recipe, out)[0]


def begun(undisturbed, out):
    """A run whose meta network is there already."""
    for place in undisturbed[0].glob("meta-*"):
        shutil.copytree(place, out / place.name)
    return out


def check_equal(undisturbed, out, results):
    there, expected = undisturbed
    for name, node in expected.items():
        assert results[name].metrics == node.metrics, name
        assert [p.get("eval_loss") for p in results[name].curve] == [p.get("eval_loss") for p in node.curve], name
        (one,), (other,) = (list(d.glob(f"{name}-*/model/model.safetensors")) for d in (there, out))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_the_same_result_everywhere(recipe, undisturbed, tmp_path, kind, capsys):
    out = begun(undisturbed, tmp_path)
    check_equal(undisturbed, out, run(recipe, out, executor=executor(kind, tmp_path))[0])
    said = capsys.readouterr().err
    assert "meta (seed 0): done before" in said
    assert said.index("m1 (seed 0): done") < said.index("large (seed 0): queued")


def worker_of(directory):
    """The process of the Ray worker whose child runs this node."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "meristem.recipes" in line and str(directory) == line[-1]:
            return process.parent()
    return None


def test_a_killed_ray_worker_costs_its_own_node_one_attempt_and_nothing_else(recipe, undisturbed, tmp_path):
    out = begun(undisturbed, tmp_path)
    (m1,) = (job.directory for job in plan_jobs(recipe, out, open_task(recipe.data).fingerprint) if job.name == "m1")

    def kill():
        deadline = time.monotonic() + 200
        while not list(m1.glob("trainer/checkpoint-[23]*/trainer_state.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        worker = worker_of(m1)
        assert "ray" in " ".join(worker.cmdline())
        os.kill(worker.pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        results = run(recipe, out, executor=executor("ray", tmp_path))[0]
        killed.result()
    check_equal(undisturbed, out, results)
    attempts = {d.name[:2]: status.read(d).attempt for d in out.iterdir() if d.name[:2] in ("m0", "m1", "la")}
    assert attempts == {"m0": 1, "m1": 2, "la": 1}


def test_a_preempted_slurm_job_is_queued_again_with_the_same_node():
    from meristem.recipes.executors.slurm import Attempt

    again = Attempt().checkpoint("runs/a-s0-1234")
    assert isinstance(again.function, Attempt)
    assert again.args == ("runs/a-s0-1234",)


def failing(recipe, **train):
    content = recipe.model_dump(by_alias=True, exclude_none=True)
    content["nodes"]["m0"]["train"] |= train
    return parse_recipe(content)


def test_bad_input_is_said_once_and_stops_only_what_needs_it(recipe, undisturbed, tmp_path, capsys):
    out = begun(undisturbed, tmp_path)
    wrong = failing(recipe, trainer={"optim": "adamw_of_nobody"})
    with pytest.raises(ms.MeristemError) as error:
        run(wrong, out, executor=executor("local", tmp_path))
    assert "2 of 3 nodes did not finish" in str(error.value)
    assert "adamw_of_nobody is not a valid OptimizerNames" in str(error.value)
    assert "not run: a parent failed" in str(error.value)
    assert next(out.glob("m1-*/node.json"))
    assert status.read(next(out.glob("m0-*"))).attempt == 1
    assert "m0 (seed 0): failed" in capsys.readouterr().err


def test_a_crash_is_tried_again_so_often(recipe, undisturbed, tmp_path):
    out = begun(undisturbed, tmp_path)
    jobs = [job for job in plan_jobs(recipe, out, open_task(recipe.data).fingerprint) if job.name == "m0"]
    jobs[0].save()
    (jobs[0].directory / "trainer").write_text(
        ""
    )  # where checkpoints would be: an error of the machine, not of the input
    with build_executor("local", {"slots": 1, "retries": 1}) as local:
        future = local.submit(jobs[0])
        with pytest.raises(NodeCrashed, match=LOG):
            future.result(timeout=120)
    assert status.read(jobs[0].directory).attempt == 2


def test_data_of_another_machine_are_noticed(recipe, undisturbed, tmp_path):
    out = begun(undisturbed, tmp_path)
    (job,) = (job for job in plan_jobs(recipe, out, "another fingerprint") if job.name == "meta")
    job.save()
    with pytest.raises(ms.MeristemError, match="not the same data on this machine"):
        run_node(str(job.directory))


def test_two_processes_share_a_nodes_batches(recipe, undisturbed, tmp_path):
    content = recipe.model_dump(by_alias=True, exclude_none=True)
    content["nodes"] = {"meta": {**content["nodes"]["meta"], "resources": {"processes": 2}}}
    shared = run(parse_recipe(content), tmp_path)[0]["meta"]
    alone = undisturbed[1]["meta"]
    assert shared.hash == alone.hash
    assert [p["eval_loss"] for p in shared.curve] == pytest.approx([p["eval_loss"] for p in alone.curve], abs=1e-5)
    assert (shared.flops, shared.examples) == (alone.flops, alone.examples)


@pytest.mark.parametrize("growth", [
    {"grow": {"from": "small", "method": "hypercloning", "width": 2, "optimizer": "carry"}},
    {"fuse": {"from": ["small", "small"], "optimizer": "carry"}},  # its cross blocks count their own steps
], ids=["grown", "fused"])  # fmt: skip
def test_a_node_is_sharded_and_carries_its_optimizer(growth, recipe, tmp_path, monkeypatch):
    """FSDP2 by the Trainer, then grown, then FSDP2 again with the grown optimizer: as on one process. Weights are opened by the first."""
    content = recipe.model_dump(by_alias=True, exclude_none=True)
    train = {"tokens": 640, "learning_rate": 3e-3, "batch_size": 4, "evaluations": 2}
    content["nodes"] = {
        "small": {"train": {"model": MODEL, **train}},
        "grown": growth,
        "big": {"train": {"from": "grown", **train}},
    }
    alone = run(parse_recipe(content), tmp_path / "alone")[0]
    fsdp = {"state_dict_type": "FULL_STATE_DICT", "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
    for name in ("small", "big"):
        content["nodes"][name]["train"] |= {"trainer": {"fsdp": True, "fsdp_config": fsdp}}
        content["nodes"][name]["resources"] = {"processes": 2}
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent / "fsdp_on_cpu"), *sys.path]))
    monkeypatch.setenv("SHARDED", str(tmp_path / "it was"))
    monkeypatch.setenv("ONLY_FIRST", "1")
    sharded = run(parse_recipe(content), tmp_path / "sharded")[0]
    assert (tmp_path / "it was").exists()
    first, other = (float((tmp_path / f"it was{rank}").read_text()) for rank in (0, 1))
    assert first > 1
    assert other != pytest.approx(first, rel=1e-3)  # nobody has written to the others' parameters
    for name in ("small", "big"):
        expected = [p["eval_loss"] for p in alone[name].curve]
        assert [p["eval_loss"] for p in sharded[name].curve] == pytest.approx(expected, abs=1e-5), name
    one, other = (
        load_state(next((tmp_path / d).glob("big-*")) / "optimizer.safetensors") for d in ("alone", "sharded")
    )
    assert one.keys() == other.keys()
    for name, entries in one.items():
        assert float(entries["step"]) == float(other[name]["step"]) == 10
        torch.testing.assert_close(other[name]["exp_avg"], entries["exp_avg"], atol=1e-5, rtol=1e-3)


def test_the_table_shows_how_far_nodes_are(recipe, tmp_path):
    run(recipe.model_copy(update={"nodes": {"meta": recipe.nodes["meta"]}}), tmp_path)
    jobs = plan_jobs(recipe, tmp_path, open_task(recipe.data).fingerprint)
    for job in jobs[1:]:
        job.save()
    failed = {}
    table = NodeTable(jobs, failed)
    table.submitted |= {jobs[1].directory.name, jobs[2].directory.name}
    status.begin(jobs[2].directory)
    assert [table.state(job) for job in jobs] == ["done", "queued", "running", "waiting"]
    failed[jobs[3].directory.name] = "disk full"
    assert table.state(jobs[3]) == "failed"
    columns = {str(column.header): list(column.cells) for column in table.render().columns}
    assert columns["node"] == ["meta", "m0", "m1", "large"]
    assert columns["step"][0] == "10/10"
    assert columns["attempt"] == ["1", "", "1", ""]


def test_what_is_no_executor_is_refused(recipe, tmp_path):
    with pytest.raises(ms.MeristemError, match="callbacks stay in this process"):
        run(recipe, tmp_path, callbacks=[object()], executor=build_executor("local", {}))
    with pytest.raises(ms.MeristemError, match="did you mean 'ray'"):
        build_executor("rai", {})
    with pytest.raises(ms.MeristemError, match="no option 'slot'; did you mean 'slots'"):
        build_executor("local", {"slot": 2})
    for kind, options in (("local", {"slots": 0}), ("ray", {"slots": "two"}), ("slurm", {"retries": -1})):
        with pytest.raises(ms.MeristemError, match="a whole number of at least"):
            build_executor(kind, options)
