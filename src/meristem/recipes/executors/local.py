"""Processes on this machine, in a number of slots."""

from __future__ import annotations

import os
import queue
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from meristem.recipes.executors.executor import Executor, check_count, run_node, with_retries
from meristem.recipes.node import Job


class Local(Executor):
    """Nodes as processes on this machine.

    Cores and GPUs are divided equally among the slots (OMP_NUM_THREADS, CUDA_VISIBLE_DEVICES), unless the
    environment sets these variables.

    Args:
        slots: the number of nodes at a time.
        retries: the number of further attempts for a node that crashed. Each continues from its last
            checkpoint.

    Raises:
        MeristemError: if an option is not a whole number in its range.
    """

    def __init__(self, slots: int = 2, retries: int = 2) -> None:
        check_count("slots", slots, 1)
        check_count("retries", retries, 0)
        self.slots, self.retries = slots, retries

    def __enter__(self) -> Local:
        self._pool = ThreadPoolExecutor(self.slots)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.slots):
            self._free.put(slot)
        self._running: dict[int, subprocess.Popen[Any]] = {}  # the latest process of each slot
        self._over = False
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        for process in list(self._running.values()):
            process.kill()
        self._pool.shutdown(cancel_futures=True)

    def submit(self, job: Job) -> Future[None]:
        return self._pool.submit(self._run, job)

    def _run(self, job: Job) -> None:
        slot = self._free.get()

        def started(process: subprocess.Popen[Any]) -> None:
            self._running[slot] = process
            if self._over:
                process.kill()

        def attempt() -> None:
            run_node(str(job.directory), self._share(slot), started)

        try:
            with_retries(attempt, self.retries, lambda: self._over)
        finally:
            self._free.put(slot)

    def _share(self, slot: int) -> dict[str, str]:
        """The cores and GPUs of a slot, as environment variables."""
        import torch

        share = {}
        if "OMP_NUM_THREADS" not in os.environ:
            share["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.slots))
        gpus = torch.cuda.device_count()
        if gpus and "CUDA_VISIBLE_DEVICES" not in os.environ:
            each = max(1, gpus // self.slots)
            share["CUDA_VISIBLE_DEVICES"] = ",".join(str(slot * each % gpus + i) for i in range(each))
        return share
