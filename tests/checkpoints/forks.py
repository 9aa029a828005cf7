"""Children of a process that has run no thread of torch yet, so that forking it is safe."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


def forked(work: Callable[[], object]) -> int:
    """The id of a child that does some work, with one thread, and leaves."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        work()
        os._exit(0)
    return pid
