"""Pieces computed by several threads, and returned in their order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
Stretch = tuple[int, int]
_THREADS = [torch.get_num_threads()]  # of this process, as torch counts them at the start (cores, or OMP_NUM_THREADS)


def divide_threads(processes: int) -> None:
    """Divide the threads of this process by the number of processes that share the machine."""
    _THREADS[0] = max(1, _THREADS[0] // processes)


def evenly(count: int) -> list[Stretch]:
    """Stretches of 0 to `count`, one for each thread."""
    ends = [round(count * n / _THREADS[0]) for n in range(_THREADS[0] + 1)]
    return [stretch for stretch in itertools.pairwise(ends) if stretch[0] < stretch[1]]


def in_order(make: Callable[[int, int], T], stretches: Iterable[Stretch]) -> Generator[tuple[Stretch, T], None, None]:
    """(stretch, make(*stretch)) in the order of the stretches. Each is computed by a thread that does nothing
    else, and at most one result waits for each thread. With one thread, the caller's thread computes them.
    """
    left = iter(stretches)
    first = list(itertools.islice(left, 2))
    if _THREADS[0] == 1 or len(first) < 2:
        for stretch in (*first, *left):
            yield stretch, make(*stretch)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(_THREADS[0], "maker", torch.set_num_threads, (1,))  # a setting of the thread
    waiting: deque[tuple[Stretch, Future[T]]] = deque()
    try:
        for stretch in (*first, *left):
            waiting.append((stretch, pool.submit(make, *stretch)))
            if len(waiting) > _THREADS[0]:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # which threads that begin later take over
