"""One thread, fixed seeds, no hub: the same numbers on every machine."""

from __future__ import annotations

import gc
import os
import sys
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

FROZEN = [0]  # the modules whose objects the collector of garbage no longer visits


def pytest_collection_finish():
    _freeze()


def pytest_runtest_teardown(nextitem):
    if nextitem is not None and len(sys.modules) > FROZEN[0] + 200:
        _freeze()


def _freeze() -> None:
    """What the imports have made stays: half a million objects, 0.3 s of every collection, of which each Trainer asks for several."""
    gc.collect()
    gc.freeze()
    FROZEN[0] = len(sys.modules)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
