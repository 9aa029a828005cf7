"""A sharded network and its optimizer, grown between stages: the losses are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import losses_of

WORKER = Path(__file__).parent / "sharded_worker.py"


@pytest.mark.dist
@pytest.mark.parametrize("mode", ["llama:width", "qwen2:both"])
def test_two_processes_grow_as_one_does(mode, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone = [float(loss) for loss in losses_of(WORKER, mode, 1, tmp_path / "one")]
    together = [float(loss) for loss in losses_of(WORKER, mode, 2, tmp_path / "two")]
    assert together == pytest.approx(alone, abs=2e-5)
    if mode == "llama:width":
        assert alone[3] < alone[0]
