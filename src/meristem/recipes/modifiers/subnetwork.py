"""Sub-networks in a recipe: RAPTR and related schedules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn
from transformers import TrainerCallback

from meristem.recipes.modifiers.modifier import Modifier, Setting
from meristem.subnetworks import Path, Schedule
from meristem.subnetworks.blocks import lists_of_blocks
from meristem.subnetworks.callback import RaptrCallback

if TYPE_CHECKING:
    from meristem.recipes.specs.method_specs import SubnetworkSpec


class Subnetwork(Modifier):
    """Trains a part of the blocks in each step."""

    name = "subnetwork"

    def __init__(self, spec: SubnetworkSpec) -> None:
        self.spec = spec
        self._schedules: dict[str, Schedule] = {}

    def prepare(self, model: nn.Module, setting: Setting) -> nn.Module:
        self._setting, self._lists = setting, lists_of_blocks(model)
        seed = setting.streams.seed("sub-networks")
        self._schedules = {
            blocks.axis: self.spec.schedule(len(blocks.modules), setting.steps, seed, sorted(blocks.needed))
            for blocks in self._lists
        }
        return model

    def callbacks(self) -> Sequence[TrainerCallback]:
        return (RaptrCallback(self._schedules),)

    def paths(self) -> Iterator[Mapping[str, Path]]:
        each = self._setting.batch_size // self._setting.micro_batch
        for step in range(self._setting.steps):
            path = {blocks.name: self._schedules[blocks.axis].path(step, blocks.name) for blocks in self._lists}
            yield from [path] * each
