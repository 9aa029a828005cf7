"""A run that is killed at any of its file operations, and started again, leaves the same bytes as one that nobody disturbs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small import MODEL, TRAIN, corpus

VIT = {"model_type": "vit", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
       "patch_size": 4}  # fmt: skip
FEW = {"batch_size": 4, "evaluations": 4, "learning_rate": 2e-3}


def of_images(folder):
    """Tensors of other names on disk."""
    nodes = {"net": {"train": {"model": VIT, "examples": 64, **FEW}}}
    return {"data": {"task": "image-classification", "source": "digits", "eval_examples": 16}, "nodes": nodes}


def of_text(folder):
    """All that a node leaves on its way: what decays branch off from, the best weights, a grown optimizer."""
    own = {**TRAIN, **FEW, "tokens": 8 * 4 * 32}
    small = {**own, "early_stop": {"patience": 3}}
    nodes = {
        "small": {"train": {**small, "model": {**MODEL, "model_type": "mixtral", "num_local_experts": 2, "num_key_value_heads": 2}}},
        "run": {"train": {**own, "schedule": "wsd", "decay": 0, "keep_every": 4 * 4 * 32}},
        "end": {"decay": {"from": "run", "at": 4 * 4 * 32, "tokens": 4 * 4 * 32}},
        "grown": {"grow": {"from": "small", "method": "hypercloning", "width": 2, "optimizer": "carry"}},
        "big": {"train": {**{k: v for k, v in own.items() if k != "model"}, "from": "grown", "scale_learning_rate": True}},
    }  # fmt: skip
    return {"data": corpus(folder, lines=400), "nodes": nodes}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("content", "step"), [(of_images, 3), (of_text, 23)])
def test_killed_at_any_file_operation(content, step, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content(tmp_path)))
    (tmp_path / "runs").mkdir()
    worker = Path(__file__).with_name("killed_anywhere_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(file), str(tmp_path / "runs"), "1", str(step)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["kills"]) >= 10
    assert any("/model/" in name for name in found["files"])
    for kill in found["kills"]:
        assert kill["codes"] == [-signal.SIGKILL, 0], kill
        assert kill["unequal"] == [], kill
