"""What each block costs, for a division that balances them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.anatomy.flops import block_flops
from meristem.incubation.ownership import lists_in_order


def block_costs(
    model: nn.Module, inputs: Mapping[str, Tensor] | None = None, anatomy: Anatomy | None = None
) -> list[int]:
    """Counted FLOPs of the forward pass in every block of `model`, from input to output: `costs` for `divide`.

    Args:
        model: the large network, with any weights.
        inputs: arguments of its forward by name, where they matter (the length of a sequence); short random ones by default.
        anatomy: of a network outside transformers.

    Raises:
        MeristemError: for a network whose inputs cannot be guessed, without `inputs`.
    """
    lists = lists_in_order(anatomy or Anatomy.of(model), model, inputs)
    return block_flops(model, [blocks.prefix for blocks in lists], inputs)
