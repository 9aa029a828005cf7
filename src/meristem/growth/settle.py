"""What neither names nor shapes show, found by trial: the network is cloned to twice its width and both are
run.

Where they first differ (`trial.first_parting`), one of two things is not understood, and both can be found:

- a number: the forward pass multiplies by something that depends on the width. The ratio of the activations
  is its change under a factor of two, which gives the exponent (-1/2 for T5's head, 1/2 for an embedding
  times sqrt(hidden_size));
- an order: a fused dimension such as [query, key, value] per head or [gate, up] per unit has another order.
  The few orders of the same size are tried, for all layers at once.

A change is kept if the networks then differ later, or not at all. The result is an anatomy for any method and
ratio.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor, nn

from meristem.algebra import Layout
from meristem.anatomy import Anatomy, Dimension, Multiplier, TensorAnatomy
from meristem.anatomy.axis_ref import is_part, whole_of
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.conventions import CONCATENATED, GROUPED
from meristem.anatomy.heads import counts_heads
from meristem.anatomy.inputs import example_inputs, logits_of
from meristem.anatomy.precision import in_precision
from meristem.anatomy.structure import folded
from meristem.errors import MeristemError
from meristem.growth.methods.hypercloning import HyperCloning
from meristem.growth.proofs.trial import Parting, first_parting
from meristem.growth.tensors.build import build

ROUNDS = 12
LAST = 12  # how many of the last modules outside of blocks may hold what scales an output
FUSED = (CONCATENATED, GROUPED)


def settle(
    anatomy: Anatomy, model: nn.Module, inputs: Mapping[str, Tensor] | None = None
) -> tuple[Anatomy, Parting | None]:
    """The anatomy with its open questions answered by trial, and where the networks still differ (None:
    nowhere).

    Args:
        anatomy: the anatomy.
        model: its network. It is copied to float64 if it can run in that.
        inputs: keyword arguments of its forward. Random ones by default.

    Raises:
        MeristemError: if the network cannot be cloned, or if its inputs cannot be guessed.
    """
    inputs = inputs if inputs is not None else example_inputs(model)
    exact = _exact(model, inputs)
    parting = _part(anatomy, exact, inputs)
    for _ in range(ROUNDS):
        if parting is None:
            break
        better = _better(anatomy, parting, exact, inputs)
        if better is None:
            break
        anatomy, parting = better
    return anatomy, parting


def _better(
    anatomy: Anatomy, parting: Parting, exact: nn.Module, inputs: Mapping[str, Tensor]
) -> tuple[Anatomy, Parting | None] | None:
    """The first proposal with which the networks differ later, or not at all. If only outputs differ, several
    places of a factor correct the first of them. One that corrects all of them comes first.
    """
    later: tuple[Anatomy, Parting | None] | None = None
    for changed in _proposals(anatomy, parting):
        try:
            after = _part(changed, exact, inputs)
        except (MeristemError, RuntimeError, ValueError):
            continue
        if after is None:
            return changed, None
        if len(after.before) > len(parting.before) or after.resolves(parting):
            later = later or (changed, after)
            if parting.module:
                break
    return later


def _exact(model: nn.Module, inputs: Mapping[str, Tensor]) -> nn.Module:
    exact = in_precision(model, torch.float64).eval()
    try:
        logits_of(exact, dict(inputs))
    except RuntimeError:  # an operator without a float64 kernel
        exact = in_precision(model, torch.float32).eval()
    return exact


def _part(anatomy: Anatomy, model: nn.Module, inputs: Mapping[str, Tensor]) -> Parting | None:
    plan = HyperCloning(width=2, noise=0.0).plan(anatomy, model, inputs)
    return first_parting(plan, model, build(plan, model).eval(), inputs)


def _proposals(anatomy: Anatomy, parting: Parting) -> Iterator[Anatomy]:
    if parting.ratio is not None and parting.ratio > 0:
        for name in _scaled_at(anatomy, parting):
            bias = name.removesuffix("weight") + "bias"
            for ratio in (parting.ratio,) if parting.module else (parting.ratio, parting.ratio**0.5):
                # an output may be the product of one tower with itself, which takes the factor twice
                yield _with_multiplier(anatomy, [name], ratio)
                if bias in anatomy.tensors:
                    yield _with_multiplier(anatomy, [name, bias], ratio)
    if not parting.module:
        return
    if parting.ratio is None:
        yield from _scaled_tables(anatomy, parting)
    near = [f"{module}." for module in (parting.module, *reversed(parting.before[-4:]))]
    close = [t for t in anatomy.tensors.values() if any(t.name.startswith(n) for n in near)]
    blocks = {t.block for t in close if t.block}
    tried: set[str] = set()
    for tensor in (*close, *(t for t in anatomy.tensors.values() if t.block in blocks)):
        if folded(tensor.name) not in tried:
            tried.add(folded(tensor.name))
            for position, dimension in enumerate(tensor.dimensions):
                for layout in (*_orders(dimension.layout), *_in_parts(dimension.layout, anatomy)):
                    yield _with_layout(anatomy, tensor, position, layout)


def _scaled_tables(anatomy: Anatomy, parting: Parting) -> Iterator[Anatomy]:
    """In a network outside transformers: a table just before may be multiplied by a root of the width before
    something unscaled is added to it (positions), so that no single factor shows.
    """
    if not isinstance(anatomy.builder, FunctionBuilder):
        return
    for module in reversed(parting.before[-4:]):
        tensor = anatomy.tensors.get(f"{module}.weight")
        if tensor is not None and not tensor.block and tensor.dimensions[0].role == "fixed":
            yield from (_with_multiplier(anatomy, [tensor.name], ratio) for ratio in (2**0.5, 2**-0.5))


def _scaled_at(anatomy: Anatomy, parting: Parting) -> Iterator[str]:
    """The weights that could absorb the factor: the module's own if it is a reader or writer, and otherwise
    the writer before it. For an output of the whole network, any single number, and the last writers.
    """
    if not parting.module:
        yield from (name for name, tensor in anatomy.tensors.items() if math.prod(tensor.shape) == 1)
        weights = [f"{module}.weight" for module in reversed(parting.before)]
        outside = [name for name in weights if name in anatomy.tensors and not anatomy.tensors[name].block]
        yield from outside[:LAST]
        return
    own = anatomy.tensors.get(f"{parting.module}.weight")
    if own is not None and not (parting.side == "input" and own.dimensions[0].role == "gain"):
        yield own.name
    elif parting.before and f"{parting.before[-1]}.weight" in anatomy.tensors:
        yield f"{parting.before[-1]}.weight"


def _with_multiplier(anatomy: Anatomy, scaled: list[str], ratio: float) -> Anatomy:
    """`ratio` is the factor by which doubling the width changed the output of these tensors."""
    axis = next((axis.name for axis in anatomy.of_kind("hidden")), next(iter(anatomy.axes)))
    if isinstance(anatomy.builder, FunctionBuilder):  # whose axes have any names
        written = [d for name in scaled for d in anatomy.tensors[name].dimensions if d.role in ("write", "gain")]
        own = (a for d in written for a in sorted(d.layout.axes()) if a in anatomy.builder.arguments)
        axis = next(own, axis)
    field = anatomy.builder.field(axis)
    own = isinstance(anatomy.builder, FunctionBuilder)  # whose numbers outside of blocks count unlike layers
    in_every_block = [
        re.escape(name) if own and not anatomy.tensors[name].block else re.escape(folded(name)).replace(r"\*", r"\d+")
        for name in scaled
    ]
    found = [Multiplier(pattern, field, math.log2(ratio)) for pattern in in_every_block]
    return replace(anatomy, override=replace(anatomy.override, multipliers=(*anatomy.override.multipliers, *found)))


def _with_layout(anatomy: Anatomy, like: TensorAnatomy, position: int, layout: Layout) -> Anatomy:
    """The layout for this dimension of the tensor in every layer, and of its bias too."""
    tensors = dict(anatomy.tensors)
    old = like.dimensions[position]
    stem = re.sub(r"(weight|bias)$", "", folded(like.name))
    for name, tensor in tensors.items():
        if re.sub(r"(weight|bias)$", "", folded(name)) == stem:
            same = [d.role == old.role and d.layout == old.layout for d in tensor.dimensions]
            changed = (
                Dimension(layout, d.role, "trial") if hit else d for d, hit in zip(tensor.dimensions, same, strict=True)
            )
            tensors[name] = replace(tensor, dimensions=tuple(changed))
    return replace(anatomy, tensors=tensors)


def _orders(layout: Layout) -> Iterator[Layout]:
    """Other orders of a product that has a number among its factors; the other way to fuse query, key and
    value; a constant before an axis or after it.
    """
    if len(layout.terms) == 2 and any(not Layout((term,)).axes() for term in layout.terms):
        yield Layout(layout.terms[::-1])
    if str(layout) in FUSED:
        yield from (Layout.parse(other) for other in FUSED if other != str(layout))
    if len(layout.terms) != 1 or not any(isinstance(factor, int) for factor in layout.terms[0]):
        return
    (factors,) = layout.terms
    for order in permutations(factors):
        if order != factors:
            yield Layout((order,))
    if len(factors) == 2 and isinstance(factors[1], int) and counts_heads(str(factors[0])):
        heads, number = factors[0], factors[1]  # per head: a block that is really several, each with all heads
        yield from (Layout(((c, heads, number // c),)) for c in (2, 3) if number % c == 0 and number > c)


def _in_parts(layout: Layout, anatomy: Anatomy) -> Iterator[Layout]:
    """A plain axis as several of the parts that something else in the network has ([gate, up] before half as
    many).
    """
    for part in (axis for axis in anatomy.axes if is_part(axis) and layout.terms == ((whole_of(axis),),)):
        yield Layout(((anatomy.sizes[whole_of(part)] // anatomy.sizes[part], part),))
