"""Several passes through streamed networks at once, block by block: each weight is computed once for all of
them.

Each pass runs in its own thread, and only one runs at a time. When a pass comes to a block, it lets the next
one run before it takes the weights of the block. So all passes go through the blocks together, and a weight
is kept only until the last of them has taken it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

_OF_THIS_THREAD = threading.local()


def take_turns() -> None:
    """A pass that comes to a block calls this, and the others run until they come to theirs. If only one pass
    runs, nothing happens.
    """
    pass_ = getattr(_OF_THIS_THREAD, "turns", None)
    if pass_ is not None:
        turns, number = pass_
        turns.hand_on(number)


def side_by_side(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of the calls, or the exception that each has raised. They run in turns, block by block of a
    streamed network.

    Their random numbers are those that each would draw alone.
    """
    turns = _Turns(len(calls))
    results: list[Any] = [None] * len(calls)
    state, threads_of_torch = torch.get_rng_state(), torch.get_num_threads()

    def run(number: int) -> None:
        torch.set_num_threads(max(1, threads_of_torch // 2))  # a setting of the thread; others write and hash meanwhile
        with turns.of(number):
            _OF_THIS_THREAD.turns = (turns, number)
            try:
                results[number] = calls[number]()
            except Exception as error:  # the caller judges it
                results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    turns.begin()
    for thread in threads:
        thread.join()
    torch.set_rng_state(state)
    torch.set_num_threads(threads_of_torch)  # which threads that begin later take over
    return results


class _Turns:
    """Which of several passes runs."""

    def __init__(self, count: int) -> None:
        self._begun = [threading.Semaphore(0) for _ in range(count)]
        self._left = list(range(count))

    def begin(self) -> None:
        if self._left:
            self._begun[self._left[0]].release()

    @contextlib.contextmanager
    def of(self, number: int) -> Iterator[None]:
        """From the first turn of a pass to its last."""
        self._begun[number].acquire()
        try:
            yield
        finally:
            following = self._after(number)
            self._left.remove(number)
            if following != number:
                self._begun[following].release()

    def hand_on(self, number: int) -> None:
        following = self._after(number)
        if following == number:
            return
        state = torch.get_rng_state()
        self._begun[following].release()
        self._begun[number].acquire()
        torch.set_rng_state(state)

    def _after(self, number: int) -> int:
        return self._left[(self._left.index(number) + 1) % len(self._left)]
