"""How a block is silenced: which of its tensors have to be zero so that it adds nothing.

The last affine step before the output of the block is enough: the output projections of a transformer's
block, or the batch norm after the last convolution of a ResNet's. Everything before it keeps its weights, so
the block learns from its first step on.

One short pass shows what the output of a block consists of. An affine step gives the names of its parameters
to its output. Sums join names. Moves, and nonlinearities that map zero to zero, pass them on. Any other
operator contributes a part without a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from meristem.anatomy import Anatomy
from meristem.anatomy.streamed import is_streamed, with_weights
from meristem.anatomy.trace import Inputs, blocks_pass_through, run_watched
from meristem.errors import MeristemError
from meristem.growth.structure.named_pass import ATTENTION, CONTRACTIONS, PRODUCTS, NamedPass

INPUT, FOREIGN = "<the block's input>", "<something that no weight of the block silences>"
KEEP_ZERO = frozenset(
    [
        "relu",
        "silu",
        "gelu",
        "tanh",
        "hardtanh",
        "hardswish",
        "leaky_relu",
        "elu",
        "mish",
        "softshrink",
        "abs",
        "sin",
        "relu6",
        "clamp_min",
        "max_pool2d_with_indices",
        "_adaptive_avg_pool2d",
        "avg_pool2d",
        "_prelu_kernel",
        "sqrt",
    ]
)
NORMS = ("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm")


def silencing(anatomy: Anatomy, model: nn.Module, inputs: Inputs = None) -> frozenset[str] | None:
    """The tensors of all blocks that are zero in a silent one. None if no set of them leaves the stream
    unchanged.

    A copy of the model runs with these tensors set to zero. There is no such set if blocks end in a norm
    (post-norm, as in BERT) or scale their skip connection. Blocks that change the shape of the stream are not
    judged, because no copy of them fits.
    """
    prefixes = [block.prefix for block in anatomy.blocks]
    for names in _choices(anatomy, model, inputs):
        muted = with_weights(
            model, lambda name, tensor, names=names: torch.zeros_like(tensor) if name in names else tensor
        )
        if blocks_pass_through(model, muted, prefixes, inputs):
            return names
    return None


def _choices(anatomy: Anatomy, model: nn.Module, inputs: Inputs) -> Iterator[frozenset[str]]:
    """All tensors that write into the stream, by roles and layouts, and the last affine steps. For networks
    outside transformers, whose inner axes may be those of the stream, the latter come first.
    """
    written = frozenset(t.name for t in anatomy.tensors.values() if t.block and t.writes(anatomy.stream(t)))
    if getattr(model, "config", None) is not None:
        yield written
    last = _last_steps(anatomy, model, inputs)
    if last:
        yield last
    if getattr(model, "config", None) is None:
        yield written


def last_steps_of_branches(anatomy: Anatomy, model: nn.Module, inputs: Inputs = None) -> frozenset[str]:
    """The same for blocks whose output is added to the stream outside of them, `x = x + block(x)`. Empty if a
    block passes its input on itself.
    """
    return _last_steps(anatomy, model, inputs, branches=True)


def _last_steps(anatomy: Anatomy, model: nn.Module, inputs: Inputs, branches: bool = False) -> frozenset[str]:
    """The parameters of the last affine steps of every block. Empty if they cannot be watched, or if another
    operator contributes.
    """
    if is_streamed(model):
        return frozenset()
    blocks = [m for b in anatomy.blocks for m in model.get_submodule(b.prefix).children()]
    try:
        with _Watch(model, branches) as watch:
            run_watched(model, lambda: watch.hooks(blocks), inputs)
    except MeristemError:
        return frozenset()
    own = {t.tied_to or t.name for t in anatomy.tensors.values() if t.block}
    return frozenset(watch.found & own) if watch.found - {INPUT, FOREIGN} <= own else frozenset()


class _Watch(NamedPass):
    """The names of tensors: those of the last affine steps from which they are computed."""

    forgets = True

    def __init__(self, model: nn.Module, branches: bool) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._branches = branches
        for name, parameter in model.named_parameters():
            self.parameters[parameter] = name

    def hooks(self, blocks: list[nn.Module]) -> Iterator[Any]:
        """Hooks that tell this watch where blocks begin and end."""
        for block in blocks:
            yield block.register_forward_pre_hook(self._begin, with_kwargs=True)
            yield block.register_forward_hook(self._end)

    def _begin(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if first is not None:
            self.made_of[first] = {INPUT}

    def _end(self, _: nn.Module, __: tuple, output: Any) -> None:
        first = next((value for value in tree_iter(output) if isinstance(value, Tensor)), None)
        names = self.made(first) if first is not None else set()
        if self._branches:
            self.found |= {FOREIGN} if INPUT in names else names
        elif INPUT in names:  # else it has no skip connection, and cannot be silent by itself
            self.found |= names

    def other(self, name: str, operands: list[Tensor]) -> set[str]:
        weights = {self.parameters[o] for o in operands if o in self.parameters and o.dim()}
        if name in CONTRACTIONS:
            return weights or next((self.made(o) for o in operands if self.made(o)), set())
        if any(norm in name for norm in NORMS):
            return weights or self.made(operands[0])
        if name in PRODUCTS:
            return weights or next((self.made(o) for o in operands if self.made(o) - {INPUT, FOREIGN}), set())
        if ATTENTION in name and len(operands) > 2:
            return self.made(operands[2])
        return self.made(operands[0]) if name in KEEP_ZERO and operands else set()

    def sum(self, operands: list[Tensor]) -> set[str]:
        names = set().union(*(self.made(operand) for operand in operands))
        numbers = [o for o in operands if o.is_floating_point() and o.dim() and not self.made(o)]
        return names | {FOREIGN} if names and any(bool(o.any()) for o in numbers) else names
