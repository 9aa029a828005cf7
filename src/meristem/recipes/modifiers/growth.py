"""Training only the entries that a growth has added, in a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerCallback

from meristem.errors import MeristemError
from meristem.growth.callback import TrainNewCallback
from meristem.growth.train_new import New
from meristem.recipes.modifiers.modifier import Modifier, Setting

if TYPE_CHECKING:
    from meristem.recipes.specs.method_specs import FreshSpec


class TrainNew(Modifier):
    """Old entries are frozen, or new ones have their own learning rate."""

    name = "train_only"

    def __init__(self, train: New, fresh: FreshSpec | None, learning_rate: float) -> None:
        self.train: New = train
        self.fresh, self._rate = fresh, learning_rate

    def prepare(self, model: nn.Module, setting: Setting) -> nn.Module:
        if setting.provenance is None:
            raise MeristemError(
                "train_only and fresh need a grown model, and no record says which entries of this one are new. Train "
                "`from` a grow node, or from a node that depends on one"
            )
        setting.provenance.check(model)
        ratio = self.fresh.learning_rate / self._rate if self.fresh else 1.0
        warmup = round(self.fresh.warmup * setting.steps) if self.fresh else 0
        self._callback = TrainNewCallback(setting.provenance, self.train, ratio=ratio, warmup=warmup)
        self._counts = setting.provenance.counts()
        return model

    def callbacks(self) -> Sequence[TrainerCallback]:
        return (self._callback,)

    def details(self) -> Mapping[str, Any]:
        return {"train_only": self.train, "entries": self._counts}
