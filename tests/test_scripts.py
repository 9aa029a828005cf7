"""The script for a lent GPU and the measured suite: they end clean, and know what they are about."""

from __future__ import annotations

import json
import sys

import gpu
import measured
import pytest
import torch
from support import sparse, step_times

from meristem.checkpoints import open_streamed
from meristem.checkpoints.stored import StoredTensors


def test_without_a_card_nothing_is_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--results", str(tmp_path)])
    gpu.main()
    assert "no CUDA device" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_with_a_card_every_part_is_kept_whatever_becomes_of_it(monkeypatch, tmp_path):
    parts = {
        "good": gpu.Part(("-c", "print('words'); print('{\"speed\": 2}')"), 60),
        "bad": gpu.Part(("-c", "raise SystemExit('no')"), 60),
        "slow": gpu.Part(("-c", "import time; print('begun', flush=True); time.sleep(60)"), 3),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "USUAL", tuple(parts))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        gpu.main()
    assert left.value.code == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["card"] == "a card"
    assert found["parts"]["good"]["found"] == {"speed": 2}
    assert [found["parts"][name]["exit_code"] for name in parts] == [0, 1, None]
    assert found["parts"]["slow"]["last_lines"] == ["begun"]
    assert found["parts"]["slow"]["seconds"] < 30


@pytest.mark.parametrize("side", [name for name in step_times.SIDES if "FSDP2" not in name])
def test_the_sides_of_the_step_times_run(side):
    make, around = step_times.SIDES[side]
    device = torch.device("cpu")
    found = step_times.milliseconds(make(step_times.TINY, device, False), around, step_times.TINY, device)
    assert found["milliseconds"] > 0


def test_a_sparse_checkpoint_is_what_the_class_expects_and_weighs_nothing(tmp_path):
    found = sparse.make_sparse(tmp_path / "big", sparse.qwen3_30b_a3b())
    assert found == {"parameters": 30_532_122_624, "tensors": 18_867, "bytes": found["bytes"], "files": 13}
    assert sum(f.stat().st_blocks * 512 for f in (tmp_path / "big").iterdir()) < 20e6
    entry = StoredTensors(tmp_path / "big").entries["model.layers.47.mlp.experts.127.down_proj.weight"]
    assert entry.shape == (2048, 768)
    model = open_streamed(str(tmp_path / "big"))
    assert sum(p.numel() for p in model.parameters()) == 30_532_122_624
    assert all(p.is_meta for p in model.parameters())


def test_thirds_are_fair_and_slow_means_measured():
    names = [f"tests/a.py::test_{i}[x-{i % 7}]" for i in range(3000)]
    counts = [sum(measured.part_of(name) == part for name in names) for part in range(measured.PARTS)]
    assert sum(counts) == 3000
    assert max(counts) - min(counts) < 200
    assert all(taken >= measured.KEPT for taken in measured.measured().values())
