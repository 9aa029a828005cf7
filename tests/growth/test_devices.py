"""Growth on another device (`device_suite.py`), in a process of its own: a backend that is registered with torch stays there,
and changes what checkpointing and distributed checkpoints take for the machine's accelerator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("device_suite.py")


def passes(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(SUITE)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=SUITE.parents[2])


@pytest.mark.timeout(1200)
def test_growth_on_a_device_that_every_machine_has():
    done = passes("-m", "not gpu")
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.gpu
@pytest.mark.timeout(1200)
def test_growth_on_a_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    done = passes("-m", "gpu")
    assert done.returncode == 0, done.stdout[-4000:]
