"""A weight in half precision that counts as one in high precision, and is never copied whole.

A proof runs stored weights in float32 or float64. A copy of each weight in that dtype takes two to four times
its memory, and more time than the products of a few tokens with it. A `Widened` weight looks like the copy.
Products and look-ups read it in blocks of rows that stay in the processor's cache while they are widened and
multiplied. For any other operation the copy is made after all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from meristem.makers import evenly, in_order

LARGE = 1 << 20  # entries, from which on a copy costs more than the detour
BLOCK = 1 << 18  # entries that are widened at once
_ATEN = torch.ops.aten
_VIEWS = {
    _ATEN.t.default,
    _ATEN.detach.default,
    _ATEN.alias.default,
    _ATEN.transpose.int,
    _ATEN.select.int,
    _ATEN.slice.Tensor,
    _ATEN.view.default,
    _ATEN.unsqueeze.default,
    _ATEN.squeeze.dim,
}


def widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` as one of `dtype`. A large matrix on the CPU is widened in blocks."""
    wider = tensor.is_floating_point() and dtype.is_floating_point and tensor.dtype.itemsize < dtype.itemsize
    if wider and tensor.dim() > 1 and tensor.numel() >= LARGE and tensor.device.type == "cpu":
        return Widened(tensor, dtype)
    return tensor.to(dtype)


class Widened(Tensor):
    """A tensor of `dtype` whose numbers are those of `stored`, for reading only."""

    _stored: Tensor

    @staticmethod
    def __new__(cls, stored: Tensor, dtype: torch.dtype) -> Widened:
        made = Tensor._make_wrapper_subclass(cls, stored.shape, strides=stored.stride(), dtype=dtype)  # type: ignore[attr-defined]
        made._stored = stored
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Widened({tuple(self.shape)}, {self._stored.dtype} as {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        first, own = args[0], [isinstance(argument, Widened) for argument in args]
        if func in _VIEWS and own[0]:
            return Widened(func(first._stored, *args[1:], **kwargs), first.dtype)
        if func is _ATEN.embedding.default and own[0]:
            return func(first._stored, *args[1:], **kwargs).to(first.dtype)
        if func is _ATEN.mm.default and own == [False, True]:
            return _product(first, args[1]._stored)
        if func is _ATEN.addmm.default and own == [False, False, True] and not kwargs:
            return _product(args[1], args[2]._stored).add_(first)
        return func(*tree_map(_whole, args), **tree_map(_whole, kwargs))


def _whole(value: Any) -> Any:
    return value._stored.to(value.dtype) if isinstance(value, Widened) else value


def _product(left: Tensor, stored: Tensor) -> Tensor:
    """left (n, k) . stored (k, m), in the dtype of `left`. `stored` is widened in blocks of rows, by several
    threads that compute different columns of the result.
    """
    rows = stored.t()
    by_columns = rows.is_contiguous()  # what nn.Linear multiplies with
    result = left.new_empty(len(rows), len(left)) if by_columns else left.new_zeros(len(left), len(rows))

    @torch.no_grad()  # a setting of the thread
    def columns(first: int, last: int) -> None:
        if by_columns:
            for a, block in _blocks(rows[first:last], left.dtype):
                torch.mm(block, left.t(), out=result[first + a : first + a + len(block)])
        else:
            for a, block in _blocks(stored[:, first:last], left.dtype):
                result[:, first:last].addmm_(left[:, a : a + len(block)], block)

    for _ in in_order(columns, evenly(len(rows))):
        pass
    return result.t() if by_columns else result


def _blocks(rows: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """(number of the first row, some rows in `dtype`), all in the same memory one after the other."""
    step = max(1, BLOCK // max(1, rows.shape[1]))
    memory = torch.empty(min(step, len(rows)), rows.shape[1], dtype=dtype)
    for a in range(0, len(rows), step):
        part = rows[a : a + step]
        yield a, memory[: len(part)].copy_(part)
