"""A train node of a recipe file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from meristem.errors import MeristemError, nearest
from meristem.recipes.specs.conflicts import CONFLICTS
from meristem.recipes.specs.data_specs import Count, Strict
from meristem.recipes.specs.guard_specs import EarlyStopSpec, Positive, SpikesSpec
from meristem.recipes.specs.method_specs import DistillSpec, FreshSpec, IncubateSpec, MajoritySpec, SubnetworkSpec
from meristem.recipes.specs.trainer_keys import checked_keys, features
from meristem.recipes.specs.tune_spec import TuneSpec

if TYPE_CHECKING:
    from meristem.recipes.modifiers import Modifier


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from error
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]


DecayShape = Literal["linear", "cosine", "1-sqrt"]


class TrainSpec(Strict):
    """Train a new model (`model`), or the model of another node (`from`), with transformers' Trainer. The
    budget is a number of `tokens` or of `examples`.

    `schedule` is the schedule of the learning rate: cosine, linear, constant_with_warmup or wsd. wsd has a
    warm-up, a stable phase, and a decay over the last share `decay` of the run in the form `decay_shape` (Hu
    et al. 2024, arXiv:2404.06395; 1-sqrt: Haegele et al. 2024, arXiv:2405.18392). `warmup` is a share of the
    run. `tune` chooses numbers before the run. `evaluations` is the number of evaluations in the run.
    `checkpoint_every` is the number of tokens (or examples, as in the budget) between two states from which
    the run can resume. By default there is one at every evaluation. `keep_every` is the number between two
    steps at which model and optimizer are kept for decays that branch off. `early_stop` ends the run when its
    loss stops falling. `spikes` handles steps whose loss jumps.

    `scale_learning_rate` scales the learning rate of each weight by the scale that a growth gave it (see
    `growth.optimizers.optimizer.amplitudes`). `learning_rates` multiplies the learning rate of parameters
    whose names match a regular expression. The first match counts. `subnetwork` trains a part of the network
    at each step, and `majority` trains several kernels in each layer. `train_only` freezes the entries that a
    growth has not added: `fresh` trains entries without a source, `copied` all new entries, and `grown` whole
    tensors with new entries. `fresh` gives new entries their own learning rate and warm-up (see
    `ms.freeze_old`). `distill` adds the distance from another node's outputs to the loss. `load_balancing` is
    the coefficient of the load-balancing loss of a mixture of experts. `incubate` trains one module of a
    larger network inside the meta network that `from` names. `seed` makes networks of one kind start
    differently. `trainer` sets further TrainingArguments fields (bf16, gradient_accumulation_steps,
    report_to, ...).
    """

    model: dict[str, Any] | None = None
    from_: str | None = Field(default=None, alias="from")
    tokens: Count | None = None
    examples: Count | None = None
    learning_rate: Positive | None = None
    batch_size: Annotated[int, Field(gt=0)] = 16
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    schedule: Literal["cosine", "linear", "constant_with_warmup", "wsd"] = "cosine"
    decay: Annotated[float, Field(ge=0, le=1)] | None = None
    decay_shape: DecayShape | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    evaluations: Annotated[int, Field(gt=0)] = 20
    checkpoint_every: Count | None = None
    keep_every: Count | None = None
    scale_learning_rate: bool = False
    learning_rates: dict[Pattern, Positive] = Field(default_factory=dict)
    early_stop: EarlyStopSpec | None = None
    spikes: SpikesSpec | None = None
    seed: int = 0
    tune: TuneSpec | None = None
    train_only: Literal["fresh", "copied", "grown", "all"] = "all"
    fresh: FreshSpec | None = None
    subnetwork: SubnetworkSpec | None = None
    majority: MajoritySpec | None = None
    incubate: IncubateSpec | None = None
    distill: DistillSpec | None = None
    load_balancing: Positive | None = None
    trainer: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_origin(self) -> TrainSpec:
        if (self.model is None) == (self.from_ is None):
            raise ValueError("give either `model` (a config to start from random numbers) or `from` (another node)")
        if self.model is not None and not self.model.get("model_type"):
            raise ValueError("model needs a `model_type`, such as llama or gpt2, next to its other config entries")
        if self.from_ is None and (self.train_only != "all" or self.fresh):
            raise ValueError("train_only and fresh need `from`: a node whose model has been grown")
        if self.incubate and self.from_ is None:
            raise ValueError("incubate needs `from`: the node of the meta network")
        if (self.tokens is None) == (self.examples is None):
            raise ValueError("give either `tokens` or `examples` (sequences, images): how much to train on")
        return self

    @model_validator(mode="after")
    def _rates(self) -> TrainSpec:
        grids = self.tune.grids if self.tune else {}
        if (self.learning_rate is None) != ("learning_rate" in grids):
            raise ValueError(
                "give either `learning_rate` or a grid for it: `tune: {learning_rate: [1e-3, 2e-3, 4e-3]}`"
            )
        if self.schedule != "wsd" and (self.decay is not None or self.decay_shape is not None):
            raise ValueError("decay and decay_shape need `schedule: wsd`")
        if self.schedule == "wsd" and self.warmup + self.decay_share > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay_share} are more than the whole run")
        first = {key: values[0] for key, values in grids.items()}
        for key, values in grids.items():
            for value in values:
                self.with_numbers({**first, key: value})
        return self

    @field_validator("trainer")
    @classmethod
    def _fields_of_the_trainer(cls, trainer: dict[str, Any]) -> dict[str, Any]:
        try:
            return checked_keys(trainer)
        except MeristemError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _goes_together(self) -> TrainSpec:
        self.check_conflicts(set())
        layers = (self.model or {}).get("num_hidden_layers")
        if self.subnetwork and isinstance(layers, int):
            self.subnetwork.check(layers)
        if self.majority and self.subnetwork and (self.subnetwork.__pydantic_extra__ or {}).get("widths"):
            raise ValueError("majority cannot be combined with a subnetwork of `widths`: kernels are not sliced")
        return self

    @model_validator(mode="after")
    def _batches_can_be_cut(self) -> TrainSpec:
        cut = self.trainer.get("gradient_accumulation_steps", 1)
        if isinstance(cut, int) and cut > 0 and self.batch_size % cut:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of gradient_accumulation_steps {cut}")
        return self

    @model_validator(mode="after")
    def _steps_can_be_left_out(self) -> TrainSpec:
        if self.spikes and self.spikes.action == "skip" and self.trainer.get("fp16"):
            raise ValueError(
                "spikes: {action: skip} cannot be combined with fp16, whose scaler needs gradients in every step; use bf16"
            )
        return self

    def check_conflicts(self, more: set[str]) -> None:
        """Check that the methods can be combined. `more` holds features of the node that are not in this
        spec.

        Raises:
            ValueError: if two cannot.
        """
        present = features(self.trainer) | more
        present |= {
            name
            for name in (
                "scale_learning_rate",
                "subnetwork",
                "majority",
                "incubate",
                "fresh",
                "distill",
                "load_balancing",
            )
            if getattr(self, name)
        }
        present |= {"train_only"} if self.train_only != "all" else set()
        present |= {"cache_prefix"} if self.incubate and self.incubate.cache_prefix else set()
        for one in sorted(present):
            for other, why in CONFLICTS.get(one, {}).items():
                if other in present:
                    raise ValueError(f"{one} and {other} cannot be combined: {why}")

    def with_numbers(self, numbers: Mapping[str, float], budget: Mapping[str, int | None] | None = None) -> TrainSpec:
        """The same spec with other numbers (and another budget) and nothing to tune. The result is checked.

        Raises:
            ValueError: for a key that is not a number of this node.
        """
        content = self.model_dump(by_alias=True, exclude_none=True)
        content.pop("tune", None)
        content |= budget or {}
        for key, value in numbers.items():
            *path, last = key.split(".")
            place: Any = content
            for part in path:
                place = place.get(part) if isinstance(place, dict) else None
            known = set(TrainSpec.model_fields) - _NOT_TUNED if not path else set(place or {})
            if place is None or last not in known or not (path or _takes_numbers(last)):
                raise ValueError(f"tune: {key} is not a number of this node; {nearest(key, _NUMBERS)}")
            place[last] = int(value) if last in _WHOLE else value
        return TrainSpec.model_validate(content)

    @property
    def rate(self) -> float:
        """The learning rate. If it is tuned, it must have been chosen."""
        assert self.learning_rate is not None
        return self.learning_rate

    @property
    def decay_share(self) -> float:
        """The share of the run over which the learning rate falls at its end, for the schedule wsd."""
        return 0.2 if self.decay is None else self.decay

    @property
    def is_sharded_from_first(self) -> bool:
        """Whether FSDP distributes the weights of the first process. Methods that read weights need them in
        every process.
        """
        return bool(self.trainer.get("fsdp")) and not self.modifiers()

    @property
    def optimizer(self) -> str:
        """The kind of the optimizer, by its name in transformers. All implementations of AdamW have one
        name.
        """
        name = str(self.trainer.get("optim", "adamw_torch"))
        return "adamw_torch" if name in ("adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused") else name

    @property
    def is_stable(self) -> bool:
        """Whether the learning rate is constant at the end, so that a decay can branch off."""
        return self.schedule == "constant_with_warmup" or (self.schedule == "wsd" and self.decay == 0)

    def steps(self, tokens_per_example: int) -> int:
        """The number of optimizer steps."""
        return self.step_at(self.examples or self.tokens or 0, tokens_per_example)

    def step_at(self, amount: int, tokens_per_example: int) -> int:
        """The optimizer step after `amount` tokens or examples, as in the budget."""
        return max(1, round((amount if self.examples else amount / tokens_per_example) / self.batch_size))

    def modifiers(self) -> list[Modifier]:
        """The training-time methods, in the order in which they change the network."""
        from meristem.recipes.modifiers.distillation import Distill
        from meristem.recipes.modifiers.growth import TrainNew
        from meristem.recipes.modifiers.incubation import Incubate
        from meristem.recipes.modifiers.load_balancing import LoadBalancing
        from meristem.recipes.modifiers.majority import Majority
        from meristem.recipes.modifiers.subnetwork import Subnetwork

        fresh = self.model is not None or bool(self.incubate and self.incubate.start == "random")
        found = [
            Incubate(self.incubate) if self.incubate else None,
            Subnetwork(self.subnetwork) if self.subnetwork else None,
            Majority(self.majority, fresh) if self.majority else None,
            TrainNew(self.train_only, self.fresh, self.learning_rate or 1.0)
            if self.fresh or self.train_only != "all"
            else None,
            Distill(self.distill) if self.distill else None,
            LoadBalancing(self.load_balancing) if self.load_balancing else None,
        ]
        return [modifier for modifier in found if modifier]


_WHOLE = {"batch_size", "evaluations"}
_NUMBERS = ("learning_rate", "weight_decay", "warmup", "decay", "batch_size", "load_balancing")
_NOT_TUNED = {"seed", "evaluations", "checkpoint_every", "keep_every", "tokens", "examples"}


def _takes_numbers(field: str) -> bool:
    return field in _NUMBERS
