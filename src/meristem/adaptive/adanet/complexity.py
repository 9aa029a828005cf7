"""The cost of a unit: the Rademacher complexity of its family, and the bound on the error that follows
(AdaNet, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from meristem.errors import MeristemError


def dual_exponent(p: float) -> float:
    """The q for which 1/p + 1/q = 1. It is infinity for p = 1.

    Raises:
        MeristemError: if p < 1.
    """
    if p < 1:
        raise MeristemError(f"the norm's exponent p must be at least 1, got {p}")
    return math.inf if p == 1 else p / (p - 1)


def rademacher_bound(
    widths: Sequence[int], samples: float, largest: float = 1.0, max_norm: float = 1.0, p: float = 2.0
) -> float:
    """An upper bound r_k on the complexity of units of depth k = len(widths) (AdaNet, Lemma 2).

    r_inf Lambda_k N_k^(1/q) sqrt(ln(2 n_0) / (2 m)), with Lambda_k = (2 Lambda)^k and N_k = n_0 ... n_(k-1).

    Args:
        widths: n_0 (features), n_1, ..., n_(k-1): the number of inputs of each layer.
        samples: m, the number of rows.
        largest: r_inf, the largest absolute feature.
        max_norm: Lambda, the largest p-norm of a unit's weights.
        p: the exponent of that norm.

    Raises:
        MeristemError: if p < 1.
    """
    share = 0.0 if p == 1 else 1 / dual_exponent(p)
    product = math.prod(widths)
    return largest * (2 * max_norm) ** len(widths) * product**share * math.sqrt(math.log(2 * widths[0]) / (2 * samples))


def margin_bound(
    margin_loss: float,
    complexity: float,
    depth: int,
    samples: float,
    margin: float = 1.0,
    confidence: float = 0.95,
) -> float:
    """An upper bound on the error that holds with probability `confidence` (AdaNet, Theorem 1). The weights
    are scaled to |w|_1 = 1.

    Args:
        margin_loss: the share of training rows with y f(x) <= margin.
        complexity: sum_k |w_k|_1 r_k, where r_k is of the family and its reflection (Corollary 1: 2^k times
            `rademacher_bound`).
        depth: l, the number of layers.
        samples: m, the number of rows.
        margin: the margin in `margin_loss`.
        confidence: the probability with which the bound holds.
    """
    log_depth = math.log(max(depth, 2))
    inner = math.ceil(max(4 / margin**2 * math.log(max(margin**2 * samples / log_depth, 1.0)), 0.0))
    slack = math.sqrt(inner * log_depth / samples + math.log(2 / (1 - confidence)) / (2 * samples))
    return margin_loss + 4 / margin * complexity + 2 / margin * math.sqrt(log_depth / samples) + slack
