"""The sources of the layers of a large network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meristem.algebra import AxisMap, UnitMap


@dataclass(frozen=True)
class LayerSource:
    """A new layer: a weighted sum of old layers. If it is `silent`, it writes nothing (identity blocks)."""

    sources: tuple[tuple[int, float | Tensor], ...]  # (old layer, weight)
    silent: bool = False
    next_layer: int | None = None  # further copies of units are taken from this old layer (bert2BERT's AKI)

    @staticmethod
    def copy(layer: int) -> LayerSource:
        return LayerSource(((layer, 1.0),))

    @staticmethod
    def identity(layer: int, silent: bool) -> LayerSource:
        """A copy that writes nothing, if `silent`."""
        return LayerSource(((layer, 1.0),), silent=silent)


LayerMap = tuple[LayerSource, ...]


def share_map(layer_map: LayerMap, old: int) -> AxisMap:
    """The map of a dimension outside the blocks that has a share for each block. New layers have the share of
    their source, and the shares of silent layers are read with weight zero.
    """
    order = torch.tensor(layer_order(layer_map))
    heard = torch.tensor([not layer.silent for layer in layer_map])
    copies = torch.bincount(order[heard], minlength=old).clamp(min=1)
    read = UnitMap.select(order, old, torch.where(heard, 1.0 / copies[order].double(), 0.0))
    return AxisMap(UnitMap.select(order, old), read, twins=False)


def between_map(layer_map: LayerMap, old: int) -> AxisMap:
    """The map of a table with an entry for each layer but the last, which is added to the output of the layer
    (YOLOS). Each entry follows its layer. Nothing is added after silent layers. The last layer had no
    entry.
    """
    order = torch.tensor(layer_order(layer_map[:-1]))
    heard = torch.tensor([not layer.silent for layer in layer_map[:-1]]) & (order < old - 1)
    entries = UnitMap.select(order.clamp(max=old - 2), old - 1, heard.double())
    return AxisMap(entries, entries, twins=False)


def last_map(layer_map: LayerMap, old: int, count: int) -> AxisMap:
    """The map of a table with an entry for each of the last `count` of `old` layers (EoMT). New layers take
    the entry of their source.
    """
    order = layer_order(layer_map)
    entries = UnitMap.select(
        torch.tensor([*range(count - old), *(i - old + count for i in order if i >= old - count)]), count
    )
    return AxisMap(entries, entries, twins=False)


def layer_order(layer_map: LayerMap) -> list[int]:
    """For each new layer, the old layer whose entry in per-layer lists of the config (`layer_types`) it
    takes.
    """
    return [max(layer.sources, key=lambda source: float(source[1]))[0] for layer in layer_map]
