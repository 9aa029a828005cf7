"""Thirty kills in the middle of growth: OUT is never seen half-written, and the next run succeeds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_thirty_kills(tmp_path):
    worker = Path(__file__).parent / "killed_worker.py"
    done = subprocess.run([sys.executable, str(worker), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    seen = outcome["seen"]
    assert len(seen) == 30
    assert {entry["found"] for entry in seen} <= {0, outcome["size"]}  # nothing, or the whole
    assert any(entry["found"] == 0 for entry in seen)
    assert {entry["rerun"] for entry in seen} == {outcome["size"]}
    assert {entry["status"] for entry in seen} == {0}
    assert all(entry["left"] == ["out", "small"] for entry in seen)  # what a kill left behind, the rerun cleared
