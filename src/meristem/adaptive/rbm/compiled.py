"""Gibbs chains of zeros and ones on a CPU, compiled by numba: a chain reads only the rows of W whose unit has changed.

Matrix products multiply all the zeros, and what did not change since the last step. Here a chain goes through all of its
steps in one loop, and torch's number of threads share the chains. The random numbers are those that `Machine.gibbs` would
have drawn in torch (for an even number of chains), so that both give the same states but for roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from meristem.adaptive.rbm.draws import Draws

SHARE = 4  # chains that a thread takes at a time
NUMBERS = 1 << 24  # random numbers drawn at once, at most
_F = np.float32
_FREE = {"contract", "reassoc", "nsz", "arcp", "nnan"}  # what the compiler may do so that loops become vectors


def gibbs(
    v: Tensor,
    weights: Tensor,
    hidden_bias: Tensor,
    visible_bias: Tensor,
    offsets: Tensor | None,
    steps: int,
    draws: Draws,
) -> Tensor:
    """`steps` rounds of z and h given v, v given h, in float32.

    Args:
        v: states in [0, 1] (n, visible units). weights: W (hidden units, visible units). hidden_bias: b. visible_bias: c.
        offsets: of an ordered machine (`Ordered.offsets`); None where every unit exists.

    Returns:
        The states after the last step (n, visible units), zeros and ones.
    """
    state = v.numpy().copy()  # not by torch, whose threads spin for milliseconds after each step, in the way of these
    rows, b, c = (np.ascontiguousarray(parameter.numpy()) for parameter in (weights, hidden_bias, visible_bias))
    arrays = (rows, np.ascontiguousarray(rows.T), b, c, b if offsets is None else offsets.numpy(), offsets is not None)
    needed = len(v) * (len(b) + (offsets is not None) + len(c))
    at_once = max(1, NUMBERS // max(needed, 1))
    for done in range(0, steps, at_once):
        _share_out(state, arrays, draws.integers((min(at_once, steps - done), needed)).numpy())
    return torch.from_numpy(state)


def _share_out(state: np.ndarray, arrays: tuple[Any, ...], numbers: np.ndarray) -> None:
    """`_run` for all chains, by torch's number of threads."""
    shares = iter([(low, min(low + SHARE, len(state))) for low in range(0, len(state), SHARE)])

    def work() -> None:
        for low, high in shares:  # whoever is free takes the next
            _run(state, *arrays, numbers, low, high)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        others = [pool.submit(work) for _ in range(torch.get_num_threads() - 1)]
        work()
    for other in others:
        other.result()  # raises what it raised


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled when first called, and kept on disk for the next process."""
    options: dict[str, Any] = {"nogil": True, "fastmath": _FREE, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder that can be written to
        return njit(**options)(function)


@_compiled
def _run(state, weights, columns, hidden_bias, visible_bias, offsets, ordered, numbers, low, high):
    """Chains low .. high - 1 of `state`, in place. `numbers` (steps, of all chains those of h, of z, of v)."""
    chains = len(state)
    hidden, visible = len(hidden_bias), len(visible_bias)
    most = max(hidden, visible)
    x, h, by_h, reached = np.empty(hidden, _F), np.empty(hidden, _F), np.empty(hidden, _F), np.empty(hidden, _F)
    field, by_v = np.empty(visible, _F), np.empty(visible, _F)
    on, small, bits = np.empty(most, np.int64), np.empty(most, _F), np.empty(most, np.int32)
    for chain in range(low, high):
        v = state[chain]
        x[:], by_v[:] = hidden_bias, v
        field[:], h[:] = visible_bias, _F(0)
        for step in range(len(numbers)):
            _add_rows(by_v, columns, on, x)
            _decay(x, small, bits)
            exist = hidden
            if ordered:
                u = _uniform(numbers[step, chains * hidden + chain])
                exist = _last(x, small, offsets, u, reached, bits)
            of_h = numbers[step, chain * hidden : (chain + 1) * hidden]
            for i in range(hidden):
                new = _is_on(x[i], small[i], of_h[i]) if i < exist else _F(0)
                by_h[i], h[i] = new - h[i], new
            _add_rows(by_h, weights, on, field)
            _decay(field, small, bits)
            start = chains * (hidden + ordered) + chain * visible
            of_v = numbers[step, start : start + visible]
            for j in range(visible):
                new = _is_on(field[j], small[j], of_v[j])
                by_v[j], v[j] = new - v[j], new


@_compiled
def _add_rows(shares, rows, on, total):
    """total += shares @ rows, reading only the rows whose share is not zero, four at a time; `on` is scratch."""
    count = 0
    for i in range(len(shares)):
        on[count] = i
        count += shares[i] != 0
    for start in range(0, count - 3, 4):
        i0, i1, i2, i3 = on[start], on[start + 1], on[start + 2], on[start + 3]
        s0, s1, s2, s3 = shares[i0], shares[i1], shares[i2], shares[i3]
        r0, r1, r2, r3 = rows[i0], rows[i1], rows[i2], rows[i3]
        for j in range(len(total)):
            total[j] += (s0 * r0[j] + s1 * r1[j]) + (s2 * r2[j] + s3 * r3[j])
    for place in range(count - count % 4, count):
        share, row = shares[on[place]], rows[on[place]]
        for j in range(len(total)):
            total[j] += share * row[j]


@_compiled
def _last(x, small, offsets, u, reached, bits):
    """How many units exist: the first z with P(Z <= z | v) > u, p(z | v) = softmax(t), t = cumsum(softplus(x) + offsets)."""
    for i in range(len(x)):
        ratio = small[i] / (_F(2) + small[i])  # ln(1 + y) = 2 artanh(y / (2 + y))
        square = ratio * ratio
        series = _F(1 / 9) + square * _F(1 / 11)
        series = _F(1) + square * (_F(1 / 3) + square * (_F(1 / 5) + square * (_F(1 / 7) + square * series)))
        reached[i] = max(x[i], _F(0)) + _F(2) * ratio * series + offsets[i]
    t = _F(0)
    for i in range(len(x)):
        t += reached[i]
        reached[i] = t
    top = reached[0]
    for i in range(len(x)):
        top = max(top, reached[i])
    for i in range(len(x)):
        reached[i] -= top
    _decay(reached, reached, bits)
    total = _F(0)
    for i in range(len(x)):
        total += reached[i]
    limit, below = u * total, _F(0)
    for i in range(len(x)):
        below += reached[i]
        if below > limit:
            return i + 1
    return len(x)


@_compiled
def _decay(x, out, bits):
    """out = exp(-|x|), to float32's precision: 2^k e^r, with e^r by the Cephes polynomial; `bits` is scratch."""
    powers = bits.view(_F)
    for i in range(len(x)):
        y = max(-abs(x[i]), _F(-87))
        k = np.floor(y * _F(1.44269504) + _F(0.5))
        r = y - k * _F(0.693359375) - k * _F(-2.12194440e-4)
        p = _F(1.9875691500e-4) * r + _F(1.3981999507e-3)
        p = (p * r + _F(8.3334519073e-3)) * r + _F(4.1665795894e-2)
        p = (p * r + _F(1.6666665459e-1)) * r + _F(5.0000001201e-1)
        out[i] = p * r * r + r + _F(1)
        bits[i] = (np.int32(k) + np.int32(127)) << np.int32(23)
    for i in range(len(x)):
        out[i] *= powers[i]


@_compiled
def _uniform(number):
    """In [0, 1], as `Draws.uniform`."""
    return _F(number) * _F(2.0**-32) + _F(0.5)


@_compiled
def _is_on(x, small, number):
    """A draw of 1 with probability sigmoid(x), where small = exp(-|x|)."""
    return _F(_uniform(number) * (_F(1) + small) < (_F(1) if x >= 0 else small))
