"""One thread, fixed seeds, no hub: the same numbers on every machine."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MERISTEM_CACHE", os.path.join(tempfile.gettempdir(), f"meristem-tests-{os.getuid()}"))

import pytest
import torch
from hypothesis import settings

pytest_plugins = ["measured"]
torch.set_num_threads(1)
settings.register_profile("house", deadline=None, max_examples=50)  # no test here asserts a time
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
