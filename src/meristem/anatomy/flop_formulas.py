"""The costs of operators for which torch 2.13 has no formula, and which operators are counted."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter

aten = torch.ops.aten

# aten's operators that multiply matrices or solve systems: one of them without a formula cannot be counted. All others work entry by entry.
PRODUCTS = re.compile(
    r"(^|_)(mm|bmm|addmm|baddbmm|addbmm|int4pack|int8pack|mv|addmv|addr|ger|dot|vdot|smm|sspaddmm|hspmm|triangular_solve)(_|$)"
    r"|matmul|conv(?!ert)|(^|_)(rnn|lstm|gru)(?!.*cell)|linalg_(?!vector_norm|cross|diagonal)|attention|encoder_layer"
    r"|(^|_)(cdist|trilinear|cholesky|lu_solve|geqrf|ormqr|orgqr|svd|stft|istft)(_|$)|linear_(backward|prepack)|mkldnn_linear|fbgemm"
)


def grouped_shape(a: torch.Size, b: torch.Size, ends: Tensor | None) -> tuple[int, ...]:
    """The shape of the result of a grouped product. (The rule of torch 2.13 accepts only bfloat16.)"""
    groups = (len(ends),) if ends is not None and len(a) == len(b) == 2 else ()
    batch = tuple(a[:1]) if len(a) == 3 and len(b) == 3 else groups
    return (*batch, a[-2], b[-1])


def _grouped_flops(a: Sequence[int], b: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Each row of `a` belongs to one group. For two matrices, their shared dimension is divided into
    groups.
    """
    groups = a[0] if len(a) == len(b) == 3 else 1
    return 2 * groups * a[-2] * a[-1] * b[-1]


def _grouped_backward_flops(
    a: Sequence[int], b: Sequence[int], ends: Any, gradient: Any, *args: Any, **kwargs: Any
) -> int:
    return 2 * _grouped_flops(a, b)


def _vector_flops(*shapes: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * max(math.prod(shape) for shape in shapes if isinstance(shape, Sequence))


def _triangular_flops(a: Sequence[int], b: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Substitution: n^2 operations for each column of the result (or each row, if the matrix is on the
    right).
    """
    return math.prod(out_shape) * a[-1]


def _fourier_flops(a: Sequence[int], dims: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """5 n log2 n real operations for each transform of n entries, the usual count."""
    points = math.prod(a[dim] for dim in dims)
    return round(5 * math.prod(a) * math.log2(max(points, 2)))


@contextlib.contextmanager
def more_formulas() -> Iterator[None]:
    """A context with formulas for operators for which torch 2.13 has none."""
    registry, shapes = flop_counter.flop_registry, flop_counter.shape_wrapper
    more = {
        aten._scaled_dot_product_flash_attention_for_cpu: registry[aten._scaled_dot_product_flash_attention],
        aten._scaled_dot_product_flash_attention_for_cpu_backward: registry[
            aten._scaled_dot_product_flash_attention_backward
        ],
        aten._grouped_mm: shapes(_grouped_flops),
        aten._int_mm: registry[aten.mm],
        **{operator: shapes(_vector_flops) for operator in (aten.mv, aten.addmv, aten.dot, aten.vdot, aten.addr)},
        aten.linalg_solve_triangular: shapes(_triangular_flops),
        **{operator: shapes(_fourier_flops) for operator in (aten._fft_r2c, aten._fft_c2r, aten._fft_c2c)},
    }
    if hasattr(torch.ops.transformers, "grouped_mm_fallback"):
        more[torch.ops.transformers.grouped_mm_fallback] = shapes(_grouped_flops)
        more[torch.ops.transformers.grouped_mm_fallback_backward] = shapes(_grouped_backward_flops)
    added = {operator: formula for operator, formula in more.items() if operator not in registry}
    registry.update(added)
    try:
        yield
    finally:
        for operator in added:
            del registry[operator]
