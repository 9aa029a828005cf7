"""Maps of layers: which old layer each new one comes from."""

from __future__ import annotations

from meristem.growth.plan import LayerMap, LayerSource


def spread(old: int, new: int) -> list[tuple[int, int]]:
    """(old layer, how many new layers it becomes), as even as whole numbers allow, earlier layers first."""
    return [(layer, new // old + (layer < new % old)) for layer in range(old)]


def repeat_each(old: int, new: int) -> LayerMap:
    """Interpolation: 0 0 1 1 2 2."""
    return tuple(LayerSource.copy(layer) for layer, times in spread(old, new) for _ in range(times))


def repeat_all(old: int, new: int) -> LayerMap:
    """Whole-model copies: 0 1 2 0 1 2."""
    return tuple(LayerSource.copy(layer % old) for layer in range(new))


def repeat_span(old: int, first: int, last: int) -> LayerMap:
    """Layers `first` to `last` (exclusive) stand once more behind themselves."""
    order = [*range(last), *range(first, last), *range(last, old)]
    return tuple(LayerSource.copy(layer) for layer in order)


def identity_layers(old: int, new: int) -> LayerMap:
    """Behind each layer, silent copies of it that write nothing into the residual stream."""
    return tuple(
        LayerSource(((layer, 1.0),), silent=copy > 0) for layer, times in spread(old, new) for copy in range(times)
    )
