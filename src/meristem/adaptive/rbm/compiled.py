"""Chains and gradients of binary machines on a CPU, compiled by numba. They read only units that are 1 or
have changed.

Matrix products multiply all zeros, and everything that did not change since the last step. Here one loop runs
all steps of a chain, and adds the rows of W whose unit has changed. The random numbers are those that
`Machine.gibbs` would have drawn in torch (for an even number of chains), so both give the same states up to
rounding.

The work is divided among torch's number of threads, but not done by torch's own threads. Those spin for
milliseconds after each shared step and slow down other processes. Therefore no code here, and none around it
in an update, uses them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meristem.adaptive.rbm.draws import Draws
from meristem.adaptive.rbm.loops import expect, multiply, run

NUMBERS = 1 << 24  # random numbers drawn at once, at most
_F = np.float32


def gibbs(
    v: Tensor,
    weights: Tensor,
    hidden_bias: Tensor,
    visible_bias: Tensor,
    offsets: Tensor | None,
    steps: int,
    draws: Draws,
) -> Tensor:
    """Run `steps` rounds of z and h given v, then v given h, in float32.

    Args:
        v: the states in [0, 1] (n, visible units).
        weights: W (hidden units, visible units).
        hidden_bias: b (hidden units,).
        visible_bias: c (visible units,).
        offsets: the offsets of an ordered machine (`Ordered.offsets`), or None if every unit exists.
        steps: the number of rounds.
        draws: the random numbers.

    Returns:
        The states after the last step (n, visible units), zeros and ones.
    """
    state, b, c = v.numpy().copy(), hidden_bias.numpy(), visible_bias.numpy()
    rows, columns = np.ascontiguousarray(weights.numpy()), np.ascontiguousarray(weights.numpy().T)
    ordered, steps_of_t = _offsets(offsets, b)
    needed = len(v) * (len(b) + ordered + len(c))
    at_once = max(1, NUMBERS // max(needed, 1))
    for done in range(0, steps, at_once):
        numbers = draws.integers((min(at_once, steps - done), needed)).numpy()
        _share_out(len(v), run, state, rows, columns, b, c, ordered, steps_of_t, numbers)
    return torch.from_numpy(state)


def gradients(
    v: Tensor, shares: Tensor, weights: Tensor, hidden_bias: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sums over rows from which `Machine.gradients` is computed, with E[h_i | v] = P(unit i exists | v)
    sigmoid(x_i).

    Args:
        v: the rows (n, visible units) in [0, 1].
        shares: a factor for each row (n,).
        weights, hidden_bias, offsets: as in `gibbs`.

    Returns:
        The sums of shares E[h | v] v^T (hidden units, visible units), of shares E[h | v] (hidden units,), of
        shares P(unit exists | v) (hidden units,), and of shares v (visible units,). The last entry is P(the
        last unit exists | v) of each row (n,).
    """
    states, factors, b = np.ascontiguousarray(v.numpy()), shares.numpy(), hidden_bias.numpy()
    columns = np.ascontiguousarray(weights.numpy().T)
    ordered, steps_of_t = _offsets(offsets, b)
    survival, mean = np.empty((len(states), len(b)), _F), np.ones((len(states), len(b) + 1), _F)
    _share_out(len(states), expect, states, columns, b, ordered, steps_of_t, survival, mean)
    last = survival[:, -1].copy()
    for values in (survival, mean):
        values *= factors[:, None]
    product = np.zeros((states.shape[1], len(b) + 1), _F)  # a column of ones after E[h | v] sums v
    _share_out(len(product), multiply, np.ascontiguousarray(states.T), mean, product)
    of_weights, of_mean = np.ascontiguousarray(product[:, :-1].T), mean.sum(0)[:-1]
    of_v = product[:, -1].copy()
    return (
        torch.from_numpy(of_weights),
        torch.from_numpy(of_mean),
        torch.from_numpy(survival.sum(0)),
        torch.from_numpy(of_v),
        torch.from_numpy(last),
    )


def _offsets(offsets: Tensor | None, like: np.ndarray) -> tuple[bool, np.ndarray]:
    """Whether there is a z, and the offsets of t (any value if there is none)."""
    return (True, offsets.numpy()) if offsets is not None else (False, like)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def _share_out(rows: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call function(*arguments, low, high) for all rows on torch's number of threads. A thread that is free
    takes the next rows.
    """
    threads = torch.get_num_threads()
    step = max(1, -(-rows // (8 * threads if threads > 1 else 1)))
    parts = iter([(low, min(low + step, rows)) for low in range(0, rows, step)])

    def work() -> None:
        for low, high in parts:
            function(*arguments, low, high)

    others = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()  # raises what it raised
