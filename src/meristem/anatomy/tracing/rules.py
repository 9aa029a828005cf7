"""How operators pass dimensions on, from their operands to their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from meristem.anatomy.tracing.space import Dim, Space

Dims = list[Dim]
Arguments = Mapping[str, Any]  # an operator's arguments by the names of its schema
SAME = frozenset(
    [
        "clone",
        "contiguous",
        "_to_copy",
        "detach",
        "alias",
        "lift_fresh",
        "lift_fresh_copy",
        "flip",
        "roll",
        "dropout",
        "native_dropout",
        "_conj",
        "positive",
        "view_as_real_copy",
        "lift",
    ]
)


def moved(
    space: Space, name: str, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]
) -> list[Dims] | None:
    """The dimensions of the results of an operator that only moves the values of its first operand. None if
    it does more than that.

    Args:
        space: the atoms of the pass.
        name: the name of the operator.
        dims: the dimensions of the first operand.
        arguments: the arguments of the operator.
        shapes: the shapes of the results.
    """
    if name in SAME:
        return [dims] * len(shapes)
    rule = MOVES.get(name)
    found = rule(space, dims, arguments, shapes) if rule else None
    if found is not None and all(_fits(space, d, s) for d, s in zip(found, shapes, strict=False)):
        return found
    return None if rule is None else [[space.fresh(n) for n in shape] for shape in shapes]


def _fits(space: Space, dims: Dims, shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(space.size(d) == n for d, n in zip(dims, shape, strict=True))


def _view(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    return [space.reshape(dims, shapes[0])]


def _permute(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    return [[dims[d] for d in arguments["dims"]]]


def _transpose(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    swapped = list(dims)
    a, b = arguments["dim0"], arguments["dim1"]
    swapped[a], swapped[b] = dims[b], dims[a]
    return [swapped]


def _t(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    return [dims[::-1]]


def _unsqueeze(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    place = arguments["dim"] % (len(dims) + 1)
    return [[*dims[:place], (), *dims[place:]]]


def _squeeze(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    asked = arguments.get("dim")
    places = range(len(dims)) if asked is None else [asked] if isinstance(asked, int) else asked
    gone = {p % len(dims) for p in places if not dims[p]}
    return [[d for i, d in enumerate(dims) if i not in gone]]


def _expand(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    shape = shapes[0]
    padded = [()] * (len(shape) - len(dims)) + list(dims)
    return [[d if d else space.fresh(n) for d, n in zip(padded, shape, strict=True)]]


def _select(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    place = arguments["dim"] % len(dims)
    return [[*dims[:place], *dims[place + 1 :]]]


def _slice(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    place = arguments["dim"] % len(dims)
    size, step = space.size(dims[place]), arguments.get("step", 1)
    start, end, _ = slice(arguments.get("start"), arguments.get("end")).indices(size)
    cut = space.sliced(dims[place], start, end) if step == 1 else space.fresh(shapes[0][place])
    return [[*dims[:place], cut, *dims[place + 1 :]]]


def _parts(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    place, start, found = arguments["dim"] % len(dims), 0, []
    for shape in shapes:
        end = start + shape[place]
        found.append([*dims[:place], space.sliced(dims[place], start, end), *dims[place + 1 :]])
        start = end
    return found


def _unbind(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    return _select(space, dims, arguments, shapes) * len(shapes)


def _pad(space: Space, dims: Dims, arguments: Arguments, shapes: Sequence[Sequence[int]]) -> list[Dims]:
    pads, found = list(arguments["pad"]), list(dims)
    for i in range(len(pads) // 2):
        place, before, after = len(dims) - 1 - i, pads[2 * i], pads[2 * i + 1]
        if (before or after) and min(before, after) >= 0:
            parts = [(space.fresh(n), n) for n in (before,) if n] + [(dims[place], space.size(dims[place]))]
            parts += [(space.fresh(n), n) for n in (after,) if n]
            found[place] = space.concatenated([d for d, _ in parts], [n for _, n in parts])
        elif before or after:
            found[place] = space.fresh(shapes[0][place])
    return [found]


MOVES: dict[str, Callable[[Space, Dims, Arguments, Sequence[Sequence[int]]], list[Dims]]] = {
    **dict.fromkeys(
        ["view", "_unsafe_view", "reshape", "_reshape_alias", "unfold_view", "flatten", "view_copy"], _view
    ),
    "permute": _permute,
    "transpose": _transpose,
    "t": _t,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "select": _select,
    "slice": _slice,
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split"], _parts),
    "unbind": _unbind,
    "constant_pad_nd": _pad,
}


def reduced(space: Space, dims: Dims, arguments: Arguments, shape: Sequence[int]) -> tuple[Dims, Dims]:
    """(dimensions that stay, dimensions that are reduced) of an operator that computes means, sums and the
    like over some dimensions.
    """
    asked = arguments.get("dim", arguments.get("dims"))
    places = range(len(dims)) if asked in (None, []) else [asked] if isinstance(asked, int) else list(asked)
    gone = {place % len(dims) for place in places} if dims else set()
    kept = [() if i in gone else d for i, d in enumerate(dims)]
    if len(shape) != len(dims):
        kept = [d for i, d in enumerate(dims) if i not in gone]
    return (kept if _fits(space, kept, shape) else [space.fresh(n) for n in shape]), [dims[i] for i in gone]


def indexed(space: Space, dims: Dims, indices: Sequence[Tensor | None], shape: Sequence[int]) -> tuple[Dims, list[int]]:
    """(dimensions of tensor[indices], which of its dimensions are gone). A mask removes as many as it has."""
    gone: list[int] = []
    place = 0
    for index in indices:
        width = 1 if index is None or index.dtype.itemsize != 1 else max(1, index.dim())
        gone += [] if index is None else range(place, place + width)
        place += width
    kept = [d for i, d in enumerate(dims) if i not in gone]
    first = gone[0] if gone and gone == list(range(gone[0], gone[-1] + 1)) else 0
    new = [space.fresh(n) for n in shape[first : first + len(shape) - len(kept)]]
    found = kept[:first] + new + kept[first:]
    return (found if _fits(space, found, shape) else [space.fresh(n) for n in shape]), gone
