"""The loops of `compiled`: numba compiles them. Rows are shared out among threads, as low .. high - 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_F = np.float32
_FREE = {"contract", "reassoc", "nsz", "arcp", "nnan"}  # permissions with which the compiler vectorises loops


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled at its first call and cached on disk for the next process."""
    options: dict[str, Any] = {"nogil": True, "fastmath": _FREE, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder that can be written to
        return njit(**options)(function)


@_compiled
def run(state, weights, columns, hidden_bias, visible_bias, ordered, offsets, numbers, low, high):
    """Run the chains low .. high - 1 of `state` in place. `numbers` (steps, ...) holds those of h, of z and
    of v of all chains.
    """
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
                exist = _last(u, x, small, offsets, reached, bits)
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
def expect(v, columns, hidden_bias, ordered, offsets, survival, mean, low, high):
    """For rows low .. high - 1 of v: survival_i = P(unit i exists | v), mean_i = E[h_i | v]."""
    hidden, most = len(hidden_bias), max(columns.shape)
    x, on, small, bits = np.empty(hidden, _F), np.empty(most, np.int64), np.empty(most, _F), np.empty(most, np.int32)
    for row in range(low, high):
        x[:] = hidden_bias
        _add_rows(v[row], columns, on, x)
        _decay(x, small, bits)
        exists = survival[row]
        if ordered:
            total = _posterior(x, small, offsets, exists, bits)
            at_least = _F(0)
            for i in range(hidden - 1, -1, -1):
                at_least += exists[i] / total
                exists[i] = min(at_least, _F(1))
        else:
            exists[:] = _F(1)
        for i in range(hidden):
            mean[row, i] = exists[i] * (_F(1) if x[i] >= 0 else small[i]) / (_F(1) + small[i])


@_compiled
def multiply(a, b, product, low, high):
    """Rows low .. high - 1 of product += a @ b, where a is mostly zeros."""
    on = np.empty(a.shape[1], np.int64)
    for row in range(low, high):
        _add_rows(a[row], b, on, product[row])


@_compiled
def _add_rows(shares, rows, on, total):
    """total += shares @ rows. It reads only the rows whose share is not zero, four at a time. `on` is scratch
    memory.
    """
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
def _posterior(x, small, offsets, p, bits):
    """p = softmax(t) times the returned value, with t = cumsum(softplus(x) + offsets) and small =
    exp(-|x|).
    """
    for i in range(len(x)):
        ratio = small[i] / (_F(2) + small[i])  # ln(1 + y) = 2 artanh(y / (2 + y))
        square = ratio * ratio
        series = _F(1 / 9) + square * _F(1 / 11)
        series = _F(1) + square * (_F(1 / 3) + square * (_F(1 / 5) + square * (_F(1 / 7) + square * series)))
        p[i] = max(x[i], _F(0)) + _F(2) * ratio * series + offsets[i]
    t = _F(0)
    for i in range(len(x)):
        t += p[i]
        p[i] = t
    top = p[0]
    for i in range(len(x)):
        top = max(top, p[i])
    for i in range(len(x)):
        p[i] -= top
    _decay(p, p, bits)
    total = _F(0)
    for i in range(len(x)):
        total += p[i]
    return total


@_compiled
def _last(u, x, small, offsets, p, bits):
    """The number of units that exist: the first z with P(Z <= z | v) > u. It searches from the end, where
    most of the mass of grown machines is.
    """
    below = _posterior(x, small, offsets, p, bits)
    limit = u * below
    for i in range(len(x) - 1, -1, -1):
        below -= p[i]
        if below <= limit:
            return i + 1
    return 1


@_compiled
def _decay(x, out, bits):
    """out = exp(-|x|) in float32's precision: 2^k e^r, with e^r by the Cephes polynomial. `bits` is scratch
    memory.
    """
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
    """A number in [0, 1], as in `Draws.uniform`."""
    return _F(number) * _F(2.0**-32) + _F(0.5)


@_compiled
def _is_on(x, small, number):
    """A draw of 1 with probability sigmoid(x), where small = exp(-|x|)."""
    return _F(_uniform(number) * (_F(1) + small) < (_F(1) if x >= 0 else small))
