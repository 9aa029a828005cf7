"""Silent blocks of networks that add them to the stream outside of the block, `x = x + block(x)`, or that are
not modules.

What happens to the output of a block cannot be seen inside it. So it is tried: the network with the silent
blocks has to compute what the network without them computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from meristem.anatomy import Anatomy
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.inputs import outputs_of
from meristem.anatomy.modes import evaluating
from meristem.anatomy.trace import Inputs
from meristem.certificates import relative_error
from meristem.errors import MeristemError
from meristem.growth.structure.silence import last_steps_of_branches

MOST_LISTS = 3  # of parameters that are silenced together
CLOSE = 1e-4


def silent_branches(
    anatomy: Anatomy, model: nn.Module, deeper: Callable[[frozenset[str]], nn.Module], inputs: Inputs
) -> frozenset[str] | None:
    """The tensors that are zero in silent blocks. None if no set of them that is tried keeps the function on
    `inputs`.

    Args:
        anatomy: the anatomy of the network.
        model: the network.
        deeper: a function that makes the network with its new blocks, with these tensors zero in the silent
            ones.
        inputs: keyword arguments of forward.
    """
    if inputs is None or not isinstance(anatomy.builder, FunctionBuilder):
        return None
    with evaluating(model):
        before = outputs_of(model, inputs)
    for names in _choices(anatomy, model, inputs):
        try:
            after: Any = outputs_of(deeper(names).eval(), inputs)
        except (MeristemError, RuntimeError):
            continue
        alike = {n: t.shape for n, t in after.items()} == {
            n: t.shape for n, t in before.items()
        }  # not of longer receptive fields
        if alike and max(relative_error(before[n], after[n]) for n in before) < CLOSE:
            return names
    return None


def _choices(anatomy: Anatomy, model: nn.Module, inputs: Inputs) -> Iterator[frozenset[str]]:
    """The last affine steps of blocks that are modules. For lists of bare parameters, few lists before many,
    and the last ones first.
    """
    last = last_steps_of_branches(anatomy, model, inputs)
    if last:
        yield last
    lists = [b for b in anatomy.blocks if isinstance(model.get_submodule(b.prefix), nn.ParameterList)]
    for count in range(1, 1 + min(MOST_LISTS, len(lists))):
        for chosen in itertools.combinations(reversed(lists), count):
            yield frozenset(f"{b.prefix}.{i}" for b in chosen for i in range(b.length))
