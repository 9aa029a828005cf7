"""Majority Kernels in a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import TrainerCallback

from meristem.kernels import MajorityCallback
from meristem.kernels.majority import deployed_state, majority
from meristem.recipes.modifiers.modifier import Modifier, Setting

if TYPE_CHECKING:
    from meristem.recipes.specs.method_specs import MajoritySpec


class Majority(Modifier):
    """Trains several kernels in each layer, and saves their mean."""

    name = "majority"
    keeps_moments = False  # the moments of kernels are not those of their mean

    def __init__(self, spec: MajoritySpec, from_random_numbers: bool) -> None:
        self.spec, self._fresh = spec, from_random_numbers

    def prepare(self, model: nn.Module, setting: Setting) -> nn.Module:
        self._plain = model
        options = self.spec.options(setting.streams.seed("kernels"), "scratch" if self._fresh else "clone")
        return majority(model, options)

    def callbacks(self) -> Sequence[TrainerCallback]:
        return (MajorityCallback(),)

    def saved_as(self, model: nn.Module) -> nn.Module:
        return self._plain

    def leave(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return deployed_state(state)
