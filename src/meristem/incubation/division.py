"""How a large network is divided: contiguous runs of blocks, each with a few blocks of a small meta network in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from meristem.errors import MeristemError


@dataclass(frozen=True)
class Division:
    """The modules of a large network, and those of the meta network.

    Args:
        depths: blocks of each module of the large network, from input to output.
        meta_layers: blocks of the meta network that stand for each module.
    """

    depths: tuple[int, ...]
    meta_layers: int = 1

    def __post_init__(self) -> None:
        if len(self.depths) < 2 or min(self.depths) < 1 or self.meta_layers < 1:
            raise MeristemError(
                f"a division has at least two modules of at least one block each, got depths {list(self.depths)} with "
                f"meta_layers={self.meta_layers}"
            )

    @property
    def modules(self) -> int:
        return len(self.depths)

    @property
    def num_hidden_layers(self) -> int:
        """Of the large network."""
        return sum(self.depths)

    @property
    def meta_depth(self) -> int:
        """Blocks of the whole meta network."""
        return self.modules * self.meta_layers

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first block of each module in the large network."""
        return tuple(sum(self.depths[:module]) for module in range(self.modules))

    def in_hybrid(self, module: int) -> range:
        """The blocks of `module` in its hybrid: the meta network with this module in its place."""
        first = module * self.meta_layers
        return range(first, first + self.depths[module])

    def check(self, module: int) -> None:
        """Raises MeristemError for a module that there is not."""
        if not 0 <= module < self.modules:
            raise MeristemError(f"module {module} of {self.modules}: they are numbered from 0 to {self.modules - 1}")


def divide(
    num_hidden_layers: int, modules: int, *, costs: Sequence[float] | None = None, meta_layers: int = 1
) -> Division:
    """Divide `num_hidden_layers` blocks into contiguous modules.

    Args:
        costs: of every block; then the most expensive module is as cheap as it can be. By count otherwise, earlier modules one block
            longer where the numbers do not divide.
        meta_layers: blocks of the meta network for each module (1 in the paper).

    Raises:
        MeristemError: for more modules than blocks, or costs that are not one for each block.
    """
    if not 2 <= modules <= num_hidden_layers:
        raise MeristemError(f"{num_hidden_layers} blocks make 2 to {num_hidden_layers} modules, got {modules}")
    if costs is None:
        share, more = divmod(num_hidden_layers, modules)
        return Division(tuple(share + (module < more) for module in range(modules)), meta_layers)
    if len(costs) != num_hidden_layers:
        raise MeristemError(f"costs has {len(costs)} entries for {num_hidden_layers} blocks")
    return Division(_balanced(list(costs), modules), meta_layers)


def _balanced(costs: list[float], modules: int) -> tuple[int, ...]:
    """The depths whose largest module cost is least, by dynamic programming over the place of the last cut."""
    total = [sum(costs[:i]) for i in range(len(costs) + 1)]
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, ())}
    for module in range(1, modules + 1):
        for end in range(module, len(costs) + 1):
            best[end, module] = min(
                (max(best[cut, module - 1][0], total[end] - total[cut]), (*best[cut, module - 1][1], end - cut))
                for cut in range(module - 1, end)
                if (cut, module - 1) in best
            )
    return best[len(costs), modules][1]
