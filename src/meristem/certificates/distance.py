"""How far the outputs of two networks are apart."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

HUGE = 1e30  # of entries that mean "never": they have to be the same, and do not set the scale
OUTLYING = 1e3  # times the median: entries such as a mask's -1e4 or -1e9, which are judged by their own size alone
Outputs = dict[str, Tensor]


def relative_error(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |a| in float64.

    Entries that are infinite or huge are left out if they are equal. The result is NaN if any entry is, and
    infinite if only one of the two entries is infinite. Entries far larger than all others, as masks write
    them, do not set the scale, because they would hide the errors of the others.
    """
    a, b = a.double().cpu(), b.double().cpu()
    largest = [float(values.abs().max()) if values.numel() else 0.0 for values in (a, b)]  # NaN if any entry is
    if any(map(math.isnan, largest)):
        return math.nan
    if not (largest[0] < HUGE and math.isfinite(largest[1])):
        ordinary = a.isfinite() & b.isfinite() & (a.abs() < HUGE)
        if bool(((a != b) & ~ordinary).any()):
            return math.inf
        a, b = a[ordinary], b[ordinary]
    if not a.numel():
        return 0.0
    sizes, errors = a.abs(), (a - b).abs()
    outlying = _outlying(sizes)
    if outlying is None:
        error, scale, own = float(errors.max()), float(sizes.max()), 0.0
    else:
        own = float((errors[outlying] / sizes[outlying]).max())
        error, scale = float(errors[~outlying].max()), float(sizes[~outlying].max())
    return max(own, error / scale if scale else error)


def _outlying(sizes: Tensor) -> Tensor | None:
    """Which entries are more than `OUTLYING` times as large as the median of those that are not zero. None if
    no entry is.
    """
    nonzero, near = int((sizes > 0).sum()), int((sizes > sizes.max() / OUTLYING).sum())
    if 2 * near > nonzero:  # more than half of them are, so the median is, and costs more to find
        return None
    outlying = sizes > OUTLYING * sizes[sizes > 0].median()
    return outlying if bool(outlying.any()) else None


def largest_error(ours: Outputs, theirs: Outputs) -> float:
    """The largest error of all outputs. NaN if one is NaN."""
    errors = [relative_error(ours[name], theirs[name]) for name in ours]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def as_distributions(a: Tensor | None, b: Tensor | None) -> dict[str, Any]:
    """The divergence and the agreement of the logits of two networks, if they have logits.

    Args:
        a, b: logits (..., classes) of the small and of the large network. Further classes of the large one
            are new tokens, which follow the old ones: the small network gives them no probability.
    """
    if a is None or b is None or not a.dim():
        return {"kl_divergence": None, "top1_agreement": None}
    old = a.shape[-1]
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    terms = log_a.exp() * (log_a - log_b[..., :old])
    divergence = 0.0 if torch.equal(a, b) else terms.where(~log_a.isneginf(), 0.0).sum(-1).mean()  # 0 log 0 is 0
    agreement = (a.argmax(-1) == b.argmax(-1)).double().mean()
    found = {"kl_divergence": float(divergence), "top1_agreement": float(agreement)}
    if b.shape[-1] == old:
        return found
    probability = log_b[..., old:].exp().sum(-1).mean()
    return {**found, "new_tokens": b.shape[-1] - old, "new_token_probability": float(probability)}
