"""The anatomy of a grown network, derived from the plan that made it.

Nothing is inferred again. Every tensor of the large network runs along the axes of the tensor from which it
comes. So declarations of the user, and what a trial found out about the small network, also hold for the
large one.
"""

from __future__ import annotations

from dataclasses import replace

from meristem.anatomy import Anatomy, BlockList, TensorAnatomy
from meristem.anatomy.axis_ref import layers_of
from meristem.anatomy.heads import with_heads
from meristem.anatomy.norms import NormFacts
from meristem.errors import AnatomyError
from meristem.growth.plans.plan import GrowthPlan


def grown_anatomy(plan: GrowthPlan) -> Anatomy:
    """The anatomy of `plan.target`.

    Raises:
        AnatomyError: if a tensor of the large network has another size than its axes say. The plan is then
            wrong.
    """
    if plan.reached is not None:
        return plan.reached
    source, target = plan.source, plan.target
    sizes = with_heads(target.sizes)
    axes = {name: replace(axis, size=sizes[name]) for name, axis in source.axes.items()}
    blocks = tuple(
        BlockList(b.axis, b.prefix, len(plan.layers[b.axis]) if b.axis in plan.layers else b.length)
        for b in source.blocks
    )
    sizes.update({block.axis: block.length for block in blocks})
    used = {a for t in source.tensors.values() for d in t.dimensions for a in d.layout.axes()}
    sizes.update({axis: plan.axis_map(axis).new_size for axis in used if layers_of(axis)})
    tensors = {name: _grown(plan, name, shape) for name, shape in plan.shapes.items()}
    for tensor in tensors.values():
        for position, dimension in enumerate(tensor.dimensions):
            expected = dimension.layout.size(sizes)
            if expected != tensor.shape[position]:
                raise AnatomyError(
                    f"dimension {position} of {tensor.name} should be {dimension.layout} = {expected}, and is "
                    f"{tensor.shape[position]}"
                )
    norms = {_path(name): source.norms[p] for name in tensors if (p := _path(plan.origin(name))) in source.norms}
    norms |= _norms_without_gains(plan)
    return replace(source, builder=target, axes=axes, tensors=tensors, blocks=blocks, norms=norms)


def _norms_without_gains(plan: GrowthPlan) -> dict[str, NormFacts]:
    """Those that no tensor names, at the places of their layers."""
    found: dict[str, NormFacts] = {}
    for path, facts in plan.source.norms.items():
        if facts.gain is not None:
            continue
        grown = (b for b in plan.source.blocks if b.axis in plan.layers and path.startswith(f"{b.prefix}."))
        block = next(grown, None)
        if block is None:
            found[path] = facts
            continue
        index, dot, rest = path[len(block.prefix) + 1 :].partition(".")
        places = (new for new, layer in enumerate(plan.layers[block.axis]) if layer.sources[0][0] == int(index))
        found |= {f"{block.prefix}.{place}{dot}{rest}": facts for place in places}
    return found


def _grown(plan: GrowthPlan, name: str, shape: tuple[int, ...]) -> TensorAnatomy:
    like, own = plan.source.tensors[plan.origin(name)], plan.own_names[name]
    block = like.block
    if block is not None and block[0] in plan.layers:
        block = (block[0], plan.place(name))
    return replace(like, name=name, shape=shape, block=block, tied_to=own if own != name else None)


def _path(name: str) -> str:
    return name.rpartition(".")[0]
