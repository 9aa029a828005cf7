"""Make the large network from its trained modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.errors import MeristemError
from meristem.growth.tensors.build import filled
from meristem.incubation.division import Division
from meristem.incubation.hybrid import Incubation
from meristem.incubation.ownership import lists_in_order, owned, renumbered


def assemble(incubations: Sequence[Incubation]) -> nn.Module:
    """Make the large network from one trained hybrid for each of its modules (Deep Incubation,
    arXiv:2212.04129).

        division = ms.divide(num_hidden_layers=6, modules=3)
        parts = [ms.incubate(meta, division, module) for module in range(3)]
        ...  # train each part's model
        large = ms.assemble(parts)

    All its parameters require gradients again.

    Args:
        incubations: one trained hybrid for each module, in any order.

    Returns:
        The large network, of the class of the meta network.

    Raises:
        MeristemError: if modules are missing or occur twice, or if they come from different divisions or meta
            networks.
    """
    division = incubations[0].division if incubations else Division((1, 1))
    by_module = {incubation.module: incubation for incubation in incubations}
    if sorted(i.module for i in incubations) != list(range(division.modules)):
        raise MeristemError(
            f"assembly needs each of the modules 0 to {division.modules - 1} once, got {sorted(i.module for i in incubations)}"
        )
    if any(i.division != division for i in incubations):
        raise MeristemError("the modules come from different divisions; incubate all by the same one")
    if len({i.meta for i in incubations}) > 1:
        raise MeristemError("the modules were incubated with different meta networks, so they do not fit each other")
    first = by_module[0]
    anatomy = first.anatomy or Anatomy.of(first.model)
    lists = lists_in_order(anatomy, first.model, first.inputs)
    axes = [blocks.axis for blocks in lists]
    depths = {**anatomy.builder.depths, **dict(zip(axes, division.stage_depths, strict=True))}
    orders = {axis: _places(division, stage) for stage, axis in enumerate(axes)}
    target = anatomy.builder.resized(anatomy.builder.sizes, depths, {}, orders)
    weights = _collected(by_module, division, [blocks.prefix for blocks in lists])
    return filled(target, weights, like=first.model).requires_grad_(True)


def _places(division: Division, stage: int) -> list[int]:
    """For each block of a stage, a block of the first hybrid whose entry in per-layer lists of the config it
    takes.
    """
    own = [*division.in_hybrid(0)] if stage == 0 else []
    in_first, in_large = (division.origins(*modules)[stage] for modules in ([0], range(division.modules)))
    return own + [in_first.index(block) for block in in_large[len(own) :]]


def _collected(by_module: Mapping[int, Incubation], division: Division, prefixes: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the large network: those of every module, with its blocks renumbered, and those of no
    module (a tied embedding), from the first hybrid.
    """
    found: dict[str, Tensor] = {}
    for module, incubation in sorted(by_module.items()):
        state, prefix = incubation.model.state_dict(), prefixes[division.stage_of(module)]
        if module == 0:
            found |= {n: t for n, t in state.items() if not n.startswith(tuple(f"{p}." for p in prefixes))}
        shift = division.start(module) - division.in_hybrid(module).start
        for name in owned(incubation.model, prefixes, division, module, incubation.inputs):
            found[renumbered(name, prefix, lambda layer, shift=shift: layer + shift)] = state[name]
    return found
