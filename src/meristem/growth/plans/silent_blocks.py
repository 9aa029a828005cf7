"""New blocks that keep the function, before and after the norms of the residual stream.

Pre-norm: the output of a block that writes nothing is its input. Post-norm (BERT, BART, the original
transformer): a block ends in a norm of the stream, which changes even a stream to which nothing was added.
But the output n of a norm without gain and bias has mean 0 and mean square 1, and another such norm does not
change it. So for a block and the silent one after it

- the output of the block's last norm is n: its gain becomes 1, its bias 0;
- the norms of the silent block do the same, with gain sqrt(1 + eps), which compensates their own eps;
- the last norm of the last silent block gets the gain and the bias of the block's (`passing_on`).

A norm that a block uses a second time, as XMOD does before its language adapters, cannot be passed on. The
residual stream starts from its output there, g n + b, and ends as N(g n + b + ...). With g = 1 the block
would add to n instead, so g stays. A silent block would then have to recover the old N from N(g N + b), which
no norm does unless all of g are equal.

What remains is that n has the mean square v / (v + eps) for a stream of mean square v, and not 1. The error
is eps / (2 v) for each place where blocks are added. (For LayerNorm, v is the variance.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from meristem.anatomy import Anatomy, BlockList
from meristem.anatomy.norms import norm_eps
from meristem.anatomy.streamed import with_weights
from meristem.anatomy.trace import Inputs, NormUse, blocks_pass_through, stream_norms
from meristem.errors import MeristemError
from meristem.growth.plans.layers import LayerMap
from meristem.growth.plans.passing_on import StreamNorm
from meristem.growth.structure.silence import silencing

NOTICED = 1e-6  # change of the stream by eps, relative, from which on a growth is measured but not promised


@dataclass(frozen=True)
class Silence:
    """Whether blocks that write nothing can be added.

    Attributes:
        obstacle: why that changes the function, or "" if it does not.
        norms: the norms of post-norm blocks, by path in the small network. Empty for pre-norm ones.
        muted: tensors of the small network that are zero in silent blocks. None: all that write into the
            stream.
    """

    obstacle: str = ""
    norms: Mapping[str, StreamNorm] = field(default_factory=dict)
    muted: frozenset[str] | None = None


def silence(anatomy: Anatomy, layers: Mapping[str, LayerMap], model: nn.Module, inputs: Inputs = None) -> Silence:
    """What silent layers need in this network. The model runs on `inputs` (random ones by default), once
    unchanged and once with its writers silent.

    Args:
        anatomy: the anatomy of the network.
        layers: the new lists of blocks by their axis of depth.
        model: the network.
        inputs: keyword arguments of forward.
    """
    if not any(layer.silent for layer_map in layers.values() for layer in layer_map):
        return Silence()
    grown = [blocks for blocks in anatomy.blocks if blocks.axis in layers]
    muted = silencing(anatomy, model, inputs)
    if muted is not None:
        return Silence(muted=muted)
    cannot = "the norms change the residual stream even in a block that writes nothing"
    try:
        norms = _norms_of_the_stream(anatomy, grown, model, inputs)
    except MeristemError:
        norms = {}
    if not norms or not _normed_streams_pass(anatomy, grown, norms, model, inputs):
        return Silence(cannot)
    again = next((path for path, norm in norms.items() if norm.again), None)
    if again is not None:
        return Silence(
            f"{cannot}: {again} ends its block (post-norm) and is also used before another step of it, so no gain is right in both "
            "uses once a block follows",
            norms,
        )
    if any(layers[blocks.axis][0].silent for blocks in grown):
        return Silence(f"{cannot} and is the first of all (post-norm)", norms)
    change = sum(_change(blocks, layers[blocks.axis], norms) for blocks in grown)
    if change > NOTICED:
        eps = max(norm.eps for norm in norms.values())
        return Silence(
            f"norms of the stream (post-norm) measure it once more in each new block, and their eps of {eps:.0e} changes it by "
            f"about {change:.0e}",
            norms,
        )
    return Silence("", norms)


def _muted(anatomy: Anatomy, model: nn.Module, norms: Mapping[str, StreamNorm]) -> nn.Module:
    """A copy whose blocks write nothing, and whose `norms` have neither gain nor bias."""
    writers = {t.name for t in anatomy.tensors.values() if t.block and t.writes(anatomy.stream(t))}

    def change(name: str, tensor: Tensor) -> Tensor:
        path, _, leaf = name.rpartition(".")
        if path in norms:
            return torch.full_like(tensor, norms[path].unit if leaf == anatomy.norms[path].gain else 0.0)
        return torch.zeros_like(tensor) if name in writers else tensor

    return with_weights(model, change)


def _norms_of_the_stream(
    anatomy: Anatomy, grown: list[BlockList], model: nn.Module, inputs: Inputs
) -> dict[str, StreamNorm]:
    """The norms over the stream in the blocks, if the output of every block is that of one of them. Norms
    without a gain are left out, because nothing compensates their eps.
    """
    hidden = {axis.name for axis in anatomy.of_kind("hidden")}
    paths = [
        path
        for path, facts in anatomy.norms.items()
        if facts.gain is not None
        and any(path.startswith(f"{blocks.prefix}.") for blocks in grown)
        and anatomy.axes_over(path) <= hidden
    ]
    seen = stream_norms(model, paths, [blocks.prefix for blocks in grown], inputs)
    found = {}
    for path in paths:
        facts, eps = anatomy.norms[path], norm_eps(model.get_submodule(path))
        use = seen.get(path, NormUse(0.0, again=False))
        found[path] = StreamNorm(path in seen, facts.centres, facts.offset, eps, use.least, use.again)
    last = {path[: len(b.prefix) + 1] + path[len(b.prefix) + 1 :].partition(".")[0] for b in grown for path in seen}
    complete = all(f"{b.prefix}.{index}" in last for b in grown for index in range(b.length))
    return found if complete else {}


def _normed_streams_pass(
    anatomy: Anatomy, grown: list[BlockList], norms: Mapping[str, StreamNorm], model: nn.Module, inputs: Inputs
) -> bool:
    """Whether the output of silent blocks is their input, once it is normed."""
    centres = {norm.centres for norm in norms.values()}
    if len(centres) > 1:
        return False

    def normed(stream: Tensor) -> Tensor:
        stream = stream - stream.mean(-1, keepdim=True) if True in centres else stream
        return stream / stream.square().mean(-1, keepdim=True).sqrt()

    return blocks_pass_through(model, _muted(anatomy, model, norms), [b.prefix for b in grown], inputs, normed)


def _change(blocks: BlockList, layer_map: LayerMap, norms: Mapping[str, StreamNorm]) -> float:
    """The relative change of the stream by eps at the places where silent layers follow others."""
    total = 0.0
    for place, layer in enumerate(layer_map):
        if not layer.silent and place + 1 < len(layer_map) and layer_map[place + 1].silent:
            begin = f"{blocks.prefix}.{layer.sources[0][0]}."
            norm = next(n for path, n in norms.items() if n.last and path.startswith(begin))
            total += norm.eps / (2 * (norm.least + norm.eps))
    return total
