"""The norms of the residual stream where silent blocks follow others (post-norm), and the gain and bias of
each.

    block b       last norm: gain 1, bias 0
    silent block  norms: gain sqrt(1 + eps), bias 0
    silent block  ..., the last norm of the last: gain sqrt(1 + eps) times that of block b, and its bias

`silent_blocks` explains why that keeps the function, and how well. The moments of a gain or bias move with
it, because their gradients are the same. Those of the constants begin at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from meristem.growth.plans.layers import LayerMap
from meristem.growth.plans.tensor_plan import TensorPlan, Term


@dataclass(frozen=True)
class StreamNorm:
    """A norm of the residual stream inside a post-norm block of the small network.

    Attributes:
        last: whether its output is the output of the block.
        centres: as in `anatomy.norms.NormFacts`.
        offset: as in `anatomy.norms.NormFacts`.
        eps: what it adds to the mean square.
        least: the smallest mean square that it has measured.
        again: whether the block also uses it in another place.
    """

    last: bool
    centres: bool
    offset: float
    eps: float
    least: float
    again: bool = False

    @property
    def unit(self) -> float:
        """The stored gain with which it does not change a stream of mean square 1."""
        return math.sqrt(1 + self.eps) - self.offset


def pass_on(norm: StreamNorm, plan: TensorPlan, prefix: str, layer_map: LayerMap, place: int) -> TensorPlan:
    """The plan of the gain or the bias of such a norm in block `place` of the list at `prefix`."""
    is_gain = "gain" in plan.roles
    silent = layer_map[place].silent
    followed = place + 1 < len(layer_map) and layer_map[place + 1].silent
    if not silent and not (norm.last and followed):
        return plan
    if norm.last and not followed:
        giver = next(layer_map[i] for i in range(place - 1, -1, -1) if not layer_map[i].silent)
        rest = plan.name[len(f"{prefix}.{place}.") :]
        scale = plan.scale * (math.sqrt(1 + norm.eps) if is_gain else 1.0)
        return replace(plan, terms=(Term(f"{prefix}.{giver.sources[0][0]}.{rest}"),), scale=scale, silent=False)
    stored = (norm.unit if silent else 1 - norm.offset) if is_gain else 0.0
    return replace(plan, scale=0.0, offset=-stored, silent=True)
