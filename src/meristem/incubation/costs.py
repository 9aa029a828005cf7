"""The cost of each block, for a division that balances them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.anatomy.flops import block_flops
from meristem.incubation.ownership import lists_in_order


def block_costs(
    model: nn.Module, inputs: Mapping[str, Tensor] | None = None, anatomy: Anatomy | None = None
) -> list[int]:
    """Count the FLOPs of the forward pass of every block of `model`, from input to output. They are the
    `costs` of `divide`.

    Args:
        model: the large network, with any weights.
        inputs: keyword arguments of its forward, if they matter (the length of a sequence). Short random ones
            by default.
        anatomy: the result of `Anatomy.infer`. Networks outside transformers need it.

    Raises:
        MeristemError: if `inputs` is not given and the inputs of the network cannot be guessed.
    """
    lists = lists_in_order(anatomy or Anatomy.of(model), model, inputs)
    return block_flops(model, [blocks.prefix for blocks in lists], inputs)
