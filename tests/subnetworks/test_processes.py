"""Two processes (gloo): DDP and FSDP2 train the same path, and a path that differs is an error and no hang."""

from pathlib import Path

import pytest
from processes import losses_of

pytestmark = pytest.mark.dist
WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return losses_of(WORKER, "plain", 1, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_processes_are_one(mode, alone, tmp_path):
    together = losses_of(WORKER, mode, 2, tmp_path)
    assert [float(x) for x in together] == pytest.approx([float(x) for x in alone], abs=2e-5)


def test_a_path_that_differs_is_an_error(tmp_path):
    assert "another sub-network than rank 0" in " ".join(losses_of(WORKER, "divergent", 2, tmp_path))
