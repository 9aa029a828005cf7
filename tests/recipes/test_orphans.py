"""No process of a node outlives the one that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

pytestmark = pytest.mark.dist

MODEL = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2}  # fmt: skip


def working_in(folder):
    """Processes whose command line names a directory in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if any(str(folder) in part for part in line) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


@pytest.mark.parametrize("processes, extra", [(2, []), (1, ["--executor", "local"])], ids=["torchrun", "local"])
def test_a_killed_run_leaves_no_process(tmp_path, processes, extra):
    (tmp_path / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    train = {"model": MODEL, "examples": 200_000, "learning_rate": 1e-3, "batch_size": 4, "evaluations": 20_000}
    node = {"train": train, "resources": {"processes": processes}}
    data = {"source": str(tmp_path / "text.txt"), "sequence_length": 32, "eval_sequences": 4}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": data, "nodes": {"long": node}}))
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "meristem.cli.main",
        "run",
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(out),
        *extra,
    ]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: list(out.glob("long-*/trainer/checkpoint-*")), 200)
        workers = [process for process in working_in(out) if process.pid != run.pid]
        assert len(workers) >= processes
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        until(lambda: not working_in(out), 10)
    finally:
        for process in [run.pid, *(process.pid for process in working_in(out))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def test_a_process_that_starts_after_its_parent_has_gone_ends_at_once():
    code = "from meristem.orphans import watching_parent; import time\nwith watching_parent(): time.sleep(60)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MERISTEM_PARENT": "1"}, timeout=50, check=False
    )
    assert done.returncode == 1


CLUSTER = """
import sys, time
from meristem.recipes.executors.ray import Ray
with Ray(slots=1):
    print("up", flush=True)
    time.sleep(600)
"""


def test_a_cluster_ends_with_the_command_that_started_it(tmp_path):
    """Ray's agents too, which by themselves look for a server that is gone for up to a minute."""
    pytest.importorskip("ray")
    command = [sys.executable, "-c", CLUSTER]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    below: list[psutil.Process] = []
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == "up\n"
        until(lambda: _agents(run.pid) >= 2, 60)
        below = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        run.wait()
        _, left = psutil.wait_procs(below, timeout=30)
        assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        for process in [run, *below]:
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                process.kill()


def _agents(number):
    lines = []
    for process in psutil.Process(number).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    return sum("Agent" in line for line in lines)
