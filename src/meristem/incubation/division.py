"""How a large network is divided: into contiguous modules of blocks. A few blocks of a small meta network
take the place of each module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index

from meristem.errors import MeristemError


@dataclass(frozen=True)
class Division:
    """The modules of a large network, and those of the meta network. `ms.divide` makes it.

    Args:
        depths: the number of blocks of each module of the large network, from input to output.
        meta_layers: the number of blocks of the meta network for each module.
        stages: the number of modules in each list of blocks (the stages of a ResNet are lists). All in one
            list by default.
    """

    depths: tuple[int, ...]
    meta_layers: int = 1
    stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.depths) < 2 or min(self.depths) < 1 or self.meta_layers < 1:
            raise MeristemError(
                f"a division has at least two modules of at least one block each, got depths {list(self.depths)} with "
                f"meta_layers={self.meta_layers}"
            )
        if not self.stages:
            object.__setattr__(self, "stages", (len(self.depths),))
        if min(self.stages) < 1 or sum(self.stages) != len(self.depths):
            raise MeristemError(
                f"stages={list(self.stages)} do not hold {len(self.depths)} modules, at least one in each stage"
            )

    @property
    def modules(self) -> int:
        """The number of modules."""
        return len(self.depths)

    @property
    def num_hidden_layers(self) -> int:
        """The number of blocks of the large network, in all its stages."""
        return sum(self.depths)

    @property
    def meta_depth(self) -> int:
        """The number of blocks of the whole meta network."""
        return sum(self.meta_depths)

    @property
    def meta_depths(self) -> tuple[int, ...]:
        """The number of blocks of the meta network in each stage."""
        return tuple(modules * self.meta_layers for modules in self.stages)

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """The number of blocks of the large network in each stage."""
        return tuple(sum(self.depths[m] for m in self.of_stage(stage)) for stage in range(len(self.stages)))

    def of_stage(self, stage: int) -> range:
        """The modules of a stage."""
        first = sum(self.stages[:stage])
        return range(first, first + self.stages[stage])

    def stage_of(self, module: int) -> int:
        """The stage of a module."""
        return next(stage for stage in range(len(self.stages)) if module in self.of_stage(stage))

    def start(self, module: int) -> int:
        """The first block of a module, counted within its stage of the large network."""
        return sum(self.depths[m] for m in self.of_stage(self.stage_of(module)) if m < module)

    def in_hybrid(self, module: int) -> range:
        """The blocks of `module`, counted within its stage of its hybrid, which is the meta network with this
        module in its place.
        """
        first = (module - self.of_stage(self.stage_of(module))[0]) * self.meta_layers
        return range(first, first + self.depths[module])

    def origins(self, *large: int) -> tuple[list[int], ...]:
        """For every stage, the block of the meta network that each block takes the place of, in the network
        that has the modules `large` of the large network (one in a hybrid) and those of the meta network
        for the others.
        """
        own = self.meta_layers
        found = []
        for modules in map(self.of_stage, range(len(self.stages))):
            depths = [self.depths[m] if m in large else own for m in modules]
            found.append([m * own + layer * own // depth for m, depth in enumerate(depths) for layer in range(depth)])
        return tuple(found)

    def check(self, module: int) -> None:
        """Raises MeristemError if there is no such module."""
        if not 0 <= module < self.modules:
            raise MeristemError(f"module {module} of {self.modules}: they are numbered from 0 to {self.modules - 1}")


def divide(
    num_hidden_layers: int | Sequence[int],
    modules: int,
    *,
    costs: Sequence[float] | None = None,
    meta_layers: int = 1,
) -> Division:
    """Divide the blocks of a network into contiguous modules (Deep Incubation, arXiv:2212.04129).

    Args:
        num_hidden_layers: the number of blocks of the large network. If it has several lists of blocks (the
            stages of a ResNet, encoder and decoder), the number of each. A module lies within one list.
        modules: the number of modules.
        costs: the cost of every block (see `block_costs`). The most expensive module is then as cheap as
            possible. By default modules have equal numbers of blocks, and if these do not divide, the first
            ones have one more.
        meta_layers: the number of blocks of the meta network for each module (1 in the paper).

    Raises:
        MeristemError: if the numbers are not whole, if there are more modules than blocks, fewer than two or
            than lists, or if `costs` is not one number for each block.
    """
    try:
        counts = num_hidden_layers if isinstance(num_hidden_layers, Iterable) else [num_hidden_layers]
        stages, modules = [index(count) for count in counts], index(modules)
    except TypeError as error:
        raise MeristemError(
            f"blocks and modules are whole numbers, got {num_hidden_layers!r} and {modules!r}"
        ) from error
    total = sum(stages)
    if not max(2, len(stages)) <= modules <= total or min(stages) < 1:
        within = f" in {len(stages)} stages" if len(stages) > 1 else ""
        raise MeristemError(f"{total} blocks{within} make {max(2, len(stages))} to {total} modules, got {modules}")
    if costs is not None and len(costs) != total:
        raise MeristemError(f"costs has {len(costs)} entries for {total} blocks")
    weights = [
        list(costs[sum(stages[:i]) : sum(stages[: i + 1])]) if costs else [1.0] * n for i, n in enumerate(stages)
    ]
    shares = [1] * len(stages)
    while sum(shares) < modules:  # one more module for the stage whose largest module is the most expensive of all
        worst = [_largest(weights[i], shares[i]) if shares[i] < n else 0.0 for i, n in enumerate(stages)]
        shares[worst.index(max(worst))] += 1
    parts = [
        _by_count(n, k) if costs is None else _balanced(w, k) for n, w, k in zip(stages, weights, shares, strict=True)
    ]
    return Division(tuple(depth for part in parts for depth in part), meta_layers, tuple(shares))


def _by_count(blocks: int, modules: int) -> tuple[int, ...]:
    share, more = divmod(blocks, modules)
    return tuple(share + (module < more) for module in range(modules))


def _largest(costs: list[float], modules: int) -> float:
    depths = _balanced(costs, modules)
    return max(sum(costs[sum(depths[:i]) : sum(depths[: i + 1])]) for i in range(modules))


def _balanced(costs: list[float], modules: int) -> tuple[int, ...]:
    """The depths whose largest module cost is least, by dynamic programming over the place of the last
    cut.
    """
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
