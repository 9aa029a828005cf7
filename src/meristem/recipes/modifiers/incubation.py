"""Deep Incubation in a recipe: one module of a larger network, inside the meta network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from meristem.incubation import cached_prefix, incubate
from meristem.recipes.modifiers.modifier import Modifier, Setting
from meristem.subnetworks import Path
from meristem.subnetworks.blocks import lists_of_blocks

if TYPE_CHECKING:
    from meristem.recipes.specs.method_specs import IncubateSpec


class Incubate(Modifier):
    """Trains the hybrid in place of the meta network. The outputs of its prefix can be cached."""

    name = "incubate"

    def __init__(self, spec: IncubateSpec) -> None:
        self.spec = spec

    def prepare(self, model: nn.Module, setting: Setting) -> nn.Module:
        seed = setting.streams.seed("incubation")
        self._setting = setting
        self.incubation = incubate(model, self.spec.division, self.spec.module, start=self.spec.start, seed=seed)
        return self.incubation.model

    def paths(self) -> Iterator[Mapping[str, Path]] | None:
        return self._without_prefix() if self.spec.cache_prefix else None

    def _without_prefix(self) -> Iterator[Mapping[str, Path]]:
        """The paths with a cached prefix: the prefix runs only for batches with an example that is not in the
        cache.
        """
        incubation, examples = self.incubation, self._setting.examples
        (blocks,) = lists_of_blocks(incubation.model)
        first, layers = incubation.division.in_hybrid(incubation.module).start, len(blocks.modules)
        behind = Path(tuple(layer >= first for layer in range(layers)), (1.0,) * layers)
        known: set[int] = set()
        for start in range(0, len(examples), self._setting.micro_batch):
            batch = {examples.order.at(position) for position in range(start, start + self._setting.micro_batch)}
            yield {blocks.name: behind if batch <= known else Path.full(layers)}
            known |= batch

    def within(self) -> contextlib.AbstractContextManager[Any]:
        return cached_prefix(self.incubation) if self.spec.cache_prefix else contextlib.nullcontext()

    def details(self) -> Mapping[str, Any]:
        return {"incubation": self.incubation.record()}
