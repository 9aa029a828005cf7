"""Which layers a new task changes most: the effective rank of what a short fine-tuning has done to them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import kind_of
from meristem.anatomy.streamed import weights_of
from meristem.errors import MeristemError


@dataclass(frozen=True)
class LayerRank:
    """One layer: its list of blocks, its number, and the mean effective rank of the updates of its matrices."""

    blocks: str
    layer: int
    rank: float


def rank_layers(
    before: nn.Module, after: nn.Module, kind: str = "ffn", anatomy: Anatomy | None = None
) -> list[LayerRank]:
    """The layers of a network in the order in which a fine-tuning needs room in them, those of the highest effective rank first.

    "Grow, Don't Overwrite" (arXiv:2603.08647) grows the ten layers whose feed-forward updates have the highest effective rank, at half
    the parameters of growing all:

        ms.freeze_old(growth.model, growth, layers=ms.rank_layers(model, tuned)[:10])

    The effective rank of a matrix is exp(H), H the entropy of its singular values divided by their sum (Roy and Vetterli, 2007).

    Args:
        before, after: one network before and after some steps of fine-tuning all its weights.
        kind: of the axes along which matrices are looked at: "ffn", or "kv_heads" for attention.
        anatomy: of the network, if known.

    Raises:
        MeristemError: if the two are not of one network, nothing has changed, or no matrix in a block runs along such an axis.
    """
    anatomy = anatomy or Anatomy.of(before)
    old, new = weights_of(before), weights_of(after)
    different = next((n for n in old if n not in new or new[n].shape != old[n].shape), None)
    if different is not None:
        raise MeristemError(f"these are not one network before and after a fine-tuning: {different} differs in shape")
    prefixes = {blocks.axis: blocks.prefix for blocks in anatomy.blocks}
    ranks: dict[tuple[str, int], list[float]] = {}
    for tensor in anatomy.tensors.values():
        along = any(kind_of(axis) == kind for d in tensor.dimensions for axis in d.layout.axes())
        if tensor.block is None or not along or len(tensor.shape) < 2:
            continue
        update = (new[tensor.name].float() - old[tensor.name].float()).detach()
        place = (prefixes[tensor.block[0]], tensor.block[1])
        ranks.setdefault(place, []).extend(effective_rank(matrix) for matrix in update.reshape(-1, *update.shape[-2:]))
    if not ranks:
        raise MeristemError(
            f"no matrix in a block of this {anatomy.builder.model_type} runs along an axis of kind {kind!r}"
        )
    if not any(rank for found in ranks.values() for rank in found):
        raise MeristemError("nothing has changed between the two networks; rank layers after some steps of fine-tuning")
    found = [LayerRank(blocks, layer, mean(own)) for (blocks, layer), own in ranks.items()]
    return sorted(found, key=lambda layer: -layer.rank)


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values, as shares of their sum; 0 of zeros.

    >>> effective_rank(torch.eye(4))
    4.0
    """
    values = torch.linalg.svdvals(matrix.double())
    total = values.sum()
    if not total:
        return 0.0
    shares = values / total
    entropy = -(shares * shares.clamp(min=1e-300).log()).sum()
    return round(float(entropy.exp()), 9)
