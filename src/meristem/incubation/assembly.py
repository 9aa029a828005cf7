"""The large network, from its trained modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.errors import MeristemError
from meristem.growth.build import filled
from meristem.incubation.division import Division
from meristem.incubation.hybrid import Incubation
from meristem.incubation.ownership import lists_in_order, outside


def assemble(incubations: Sequence[Incubation]) -> nn.Module:
    """The large network, from one trained hybrid for each of its modules; all its parameters require gradients again.

    Raises:
        MeristemError: if modules are missing or given twice, or come from different divisions or meta networks.
    """
    division = incubations[0].division if incubations else Division((1, 1))
    by_module = {incubation.module: incubation for incubation in incubations}
    if sorted(i.module for i in incubations) != list(range(division.modules)):
        raise MeristemError(
            f"assembly wants modules 0 to {division.modules - 1} once each, got {sorted(i.module for i in incubations)}"
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
    """For each block of a stage, a block of the first hybrid whose place in per-layer lists of the config it takes."""
    in_first = division.origins(0)[stage]  # the meta's block at each place of the first hybrid
    found: list[int] = []
    for place, module in enumerate(division.of_stage(stage)):
        if module == 0:
            found += division.in_hybrid(0)
            continue
        depth, own = division.depths[module], division.meta_layers
        found += [in_first.index(place * own + layer * own // depth) for layer in range(depth)]
    return found


def _collected(by_module: Mapping[int, Incubation], division: Division, prefixes: Sequence[str]) -> dict[str, Tensor]:
    """The large network's tensors: every module's blocks renumbered, what stands around a stage from the module that owns it, and
    what belongs to no module (a tied embedding) from the first."""
    found: dict[str, Tensor] = {}
    for module, incubation in sorted(by_module.items()):
        state, stage = incubation.model.state_dict(), division.stage_of(module)
        prefix = prefixes[stage]
        for place, layer in enumerate(division.in_hybrid(module)):
            start = f"{prefix}.{layer}."
            for name in (n for n in state if n.startswith(start)):
                found[f"{prefix}.{division.start(module) + place}.{name.removeprefix(start)}"] = state[name]
        if module == 0:
            found |= {n: t for n, t in state.items() if not n.startswith(tuple(f"{p}." for p in prefixes))}
        around = outside(incubation.model, prefixes, incubation.inputs)
        if module == division.of_stage(stage)[0]:
            found |= {name: state[name] for name in around[stage]}
        if module == division.modules - 1:
            found |= {name: state[name] for name in around[-1]}
    return found
