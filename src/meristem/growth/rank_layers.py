"""Which layers a new task changes most, by the effective rank of the updates of a short fine-tuning."""

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
    """One layer: its list of blocks, its number, and the mean effective rank of the updates of its
    matrices.
    """

    blocks: str
    layer: int
    rank: float


def rank_layers(
    before: nn.Module, after: nn.Module, kind: str = "ffn", anatomy: Anatomy | None = None
) -> list[LayerRank]:
    """Rank the layers of a network by how much a fine-tuning uses them, the highest effective rank first.

    "Grow, Don't Overwrite" (arXiv:2603.08647) grows the ten layers whose feed-forward updates have the
    highest effective rank, with half the parameters of growing all layers:

        ms.freeze_old(growth.model, growth, layers=ms.rank_layers(model, tuned)[:10])

    The effective rank of a matrix is exp(H), where H is the entropy of its singular values divided by their
    sum (Roy and Vetterli, 2007).

    Args:
        before: the network before the fine-tuning.
        after: the same network after some steps of fine-tuning all its weights.
        kind: the kind of axis that a matrix has to run along: "ffn", or "kv_heads" for attention.
        anatomy: the anatomy of the network. Networks outside transformers need it.

    Returns:
        One `LayerRank` for each layer, in descending order of its rank.

    Raises:
        MeristemError: if the tensors of the two networks differ in name or shape, if nothing has changed, or
            if no matrix in a block runs along such an axis.
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
    """The exponential of the entropy of the singular values, as shares of their sum. 0 for a matrix of zeros.

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
