"""Training only what is new, in the Trainer of transformers."""

from __future__ import annotations

from typing import Any, Literal

from transformers import TrainerCallback

from meristem.errors import MeristemError
from meristem.growth.fusion.fusion import Fusion
from meristem.growth.growth import Growth
from meristem.growth.provenance import Provenance
from meristem.growth.train_new import New, freeze_old, scale_fresh, start_at


class TrainNewCallback(TrainerCallback):
    """Freeze what a growth has not added, or give what it has added a learning rate and a warm-up of its own
    (see `ms.freeze_old`).

        Trainer(model=growth.model, ..., callbacks=[ms.TrainNewCallback(growth, train="copied")])

    Whole tensors are frozen when the Trainer is made, before it wraps the model or makes an optimizer. Parts
    of tensors are frozen when training begins, after it has sharded them. A resumed run continues in the same
    way.

    Args:
        provenance: the growth or the fusion that made the model, or its provenance.
        train: as for `ms.freeze_old`.
        ratio: the factor of the steps of new entries.
        warmup: the number of steps over which this factor is reached.
        fresh: which entries are new. "copied": all that are not old. "fresh": only those without a source.

    Raises:
        MeristemError: if `ratio` is not positive, or if `warmup` is not a number of steps. When the Trainer
            is made, if the provenance is that of another network, or if nothing would train.
    """

    def __init__(
        self,
        provenance: Provenance | Growth | Fusion,
        train: New = "copied",
        *,
        ratio: float = 1.0,
        warmup: int = 0,
        fresh: Literal["fresh", "copied"] = "copied",
    ) -> None:
        if not 0 < ratio < float("inf") or not 0 <= warmup < float("inf"):
            raise MeristemError(f"ratio must be positive and warmup a number of steps, got {ratio} and {warmup}")
        self.provenance = provenance.provenance if isinstance(provenance, Growth | Fusion) else provenance
        self.train: New = train
        self.fresh: Literal["fresh", "copied"] = fresh
        self.ratio, self.warmup = ratio, warmup
        self._done: Any = None

    def on_init_end(self, args, state, control, model: Any = None, **kwargs) -> None:
        self._freeze(model)

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs) -> None:
        if self._done is None or any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
            self._freeze(model)  # sharding has put other parameters in the place of those that were there
        if self.ratio != 1 or self.warmup:
            scale_fresh(model, self.provenance, self.ratio, self.warmup, self.fresh)
        start_at(model, state.global_step)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self._done is not None:
            self._done.remove()
            self._done = None

    def _freeze(self, model: Any) -> None:
        if self._done is not None:
            self._done.remove()
        self._done = freeze_old(model, self.provenance, self.train)
