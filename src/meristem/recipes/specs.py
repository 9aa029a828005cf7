"""The nodes of a recipe file: what each kind takes, checked when it is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from meristem.errors import MeristemError, nearest
from meristem.recipes.data_specs import Count, Strict

if TYPE_CHECKING:
    from torch import nn

    from meristem.growth import DeepFusion, Method
    from meristem.incubation import Division
    from meristem.subnetworks import Schedule


class SubnetworkSpec(BaseModel):
    """Train a part of the network at each step: a schedule by its kind, with its options beside it.

    The numbers of blocks and steps are taken from the run; `full_model` is the share of the run before the first stage.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: Literal["raptr", "layer_drop", "stochastic_depth", "progressive_layer_dropping", "bottom_layers"] = "raptr"
    full_model: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _known_options(self) -> SubnetworkSpec:
        known = {f.name for f in fields(self._schedule_class)} - {
            "num_hidden_layers",
            "total_steps",
            "full_model_steps",
        }
        for name in self.__pydantic_extra__ or {}:
            if name not in known:
                raise ValueError(f"{self.kind} has no option {name!r}; {nearest(name, known)}")
        if self.full_model and self.kind != "raptr":
            raise ValueError(f"{self.kind} has no full_model phase; that is an option of raptr")
        return self

    @property
    def _schedule_class(self) -> type[Schedule]:
        from meristem import subnetworks

        return {
            "raptr": subnetworks.SubnetworkSchedule,
            "layer_drop": subnetworks.LayerDrop,
            "stochastic_depth": subnetworks.StochasticDepth,
            "progressive_layer_dropping": subnetworks.ProgressiveLayerDropping,
            "bottom_layers": subnetworks.BottomLayers,
        }[self.kind]

    def schedule(self, num_hidden_layers: int, total_steps: int, seed: int, needed: Iterable[int]) -> Schedule:
        """The schedule for a list of blocks, of which `needed` have to run always.

        Raises:
            MeristemError: if an option does not fit the network.
        """
        options: dict[str, Any] = {"seed": seed, **(self.__pydantic_extra__ or {})}
        if self.kind == "raptr":
            options["fixed_layers"] = (*options.get("fixed_layers", (0, -1)), *needed)
            options["full_model_steps"] = round(self.full_model * total_steps)
        return self._schedule_class(num_hidden_layers, total_steps, **options)


class MajoritySpec(BaseModel):
    """Train several kernels in each layer and leave their mean: the options of `ms.majority`, whose `start` is "clone" by default where
    the node goes on `from` another."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kernels: int = 3

    @model_validator(mode="after")
    def _known_options(self) -> MajoritySpec:
        from meristem.kernels import majority

        known = set(signature(majority).parameters) - {"model", "seed", "anatomy"}
        for name in self.__pydantic_extra__ or {}:
            if name not in known:
                raise ValueError(f"majority has no option {name!r}; {nearest(name, known)}")
        return self

    def apply(self, model: nn.Module, seed: int, trained: bool) -> nn.Module:
        """The network with kernels. Raises MeristemError for values that make no sense."""
        from meristem.kernels import majority

        return majority(model, **{"seed": seed, "start": "clone" if trained else "scratch", **self.model_dump()})


class IncubateSpec(Strict):
    """Which module of which division to train (Deep Incubation, see `incubation.incubate`).

    `num_hidden_layers` is that of the large network; of one with several lists of blocks, the number in each. `costs` balances the
    modules. `cache_prefix` runs the blocks in front of the module once for each example.
    """

    num_hidden_layers: Annotated[int, Field(gt=1)] | list[Annotated[int, Field(gt=0)]]
    modules: Annotated[int, Field(gt=1)]
    module: Annotated[int, Field(ge=0)]
    meta_layers: Annotated[int, Field(gt=0)] = 1
    start: Literal["random", "clone"] = "random"
    costs: list[Annotated[float, Field(ge=0)]] | None = None
    cache_prefix: bool = False

    @model_validator(mode="after")
    def _division_exists(self) -> IncubateSpec:
        try:
            self.division.check(self.module)
        except MeristemError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def division(self) -> Division:
        from meristem.incubation import divide

        return divide(self.num_hidden_layers, self.modules, costs=self.costs, meta_layers=self.meta_layers)


class TrainSpec(Strict):
    """Train a new model, or the one of another node, on `tokens` tokens or so many `examples` with transformers' Trainer.

    `scale_learning_rate` steps each weight in proportion to the scale that a growth gave it (see
    `growth.optimizer.amplitudes`). `subnetwork` trains a part of the network at each step, `majority` several kernels in each layer.
    `incubate` trains one module of a larger network inside the meta network that `from` names. `seed` is added to the recipe's, so that two networks of one kind start differently. `trainer` reaches every further TrainingArguments field (bf16, gradient_accumulation_steps, report_to, ...).
    """

    model: dict[str, Any] | None = None
    from_: str | None = Field(default=None, alias="from")
    tokens: Count | None = None
    examples: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)] = 16
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    evaluations: Annotated[int, Field(gt=0)] = 20
    scale_learning_rate: bool = False
    seed: int = 0
    subnetwork: SubnetworkSpec | None = None
    majority: MajoritySpec | None = None
    incubate: IncubateSpec | None = None
    trainer: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_origin(self) -> TrainSpec:
        if (self.model is None) == (self.from_ is None):
            raise ValueError("give either `model` (a config to start from random numbers) or `from` (another node)")
        if self.incubate and self.from_ is None:
            raise ValueError("incubate wants `from`: the node of the meta network")
        if self.subnetwork and self.incubate and self.incubate.cache_prefix:
            raise ValueError(
                "cache_prefix remembers what all blocks in front of the module give out; leave out `subnetwork`"
            )
        if (self.tokens is None) == (self.examples is None):
            raise ValueError("give either `tokens` or `examples` (sequences, images): how much to train on")
        return self

    def steps(self, tokens_per_example: int) -> int:
        """Optimizer steps."""
        examples = self.examples or (self.tokens or 0) / tokens_per_example
        return max(1, round(examples / self.batch_size))


class GrowSpec(BaseModel):
    """Grow the model of another node by one method or several in turn; their own options stand beside `method`."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, frozen=True)
    from_: str = Field(alias="from")
    method: str | list[str]
    optimizer: Literal["carry", "reset"] = "reset"

    @model_validator(mode="after")
    def _known_options(self) -> GrowSpec:
        try:
            self.build_methods()
        except MeristemError as error:
            raise ValueError(str(error)) from error
        return self

    def build_methods(self) -> list[Method]:
        """The methods with their options."""
        from meristem.growth import METHODS
        from meristem.growth.options import build_methods

        names = [self.method] if isinstance(self.method, str) else self.method
        return build_methods(names, self.__pydantic_extra__ or {}, METHODS)


class FuseSpec(Strict):
    """Fuse the models of several nodes (Deep Fusion, see `DeepFusion`); the same node twice is self-fusion."""

    from_: Annotated[list[str], Field(alias="from", min_length=2)]
    weights: list[float] | None = None
    norm: Literal["plain", "equalised", "grouped"] = "plain"
    noise: float | None = None
    optimizer: Literal["carry", "reset"] = "reset"

    @model_validator(mode="after")
    def _weights_fit(self) -> FuseSpec:
        try:
            self.method(0).convex(len(self.from_))
        except MeristemError as error:
            raise ValueError(str(error)) from error
        return self

    def method(self, seed: int) -> DeepFusion:
        from meristem.growth.deep_fusion import DeepFusion

        return DeepFusion(weights=self.weights, norm=self.norm, noise=self.noise, seed=seed)


class AssembleSpec(Strict):
    """Put the modules together that other nodes incubated, in any order."""

    from_: Annotated[list[str], Field(alias="from", min_length=2)]


class EnsembleSpec(Strict):
    """Choose among the networks of other nodes round by round, and mix them (AdaNet, see `recipes.ensemble`).

    `examples` judge the candidates; `adanet_lambda` and `adanet_beta` price their mixture weights, with `complexities` (by default the root
    of each network's depth).
    """

    from_: Annotated[list[str], Field(alias="from", min_length=2)]
    mixture: Literal["scalar", "vector", "mean"] = "scalar"
    adanet_lambda: Annotated[float, Field(ge=0)] = 0.0
    adanet_beta: Annotated[float, Field(ge=0)] = 0.0
    complexities: list[Annotated[float, Field(ge=0)]] | None = None
    examples: Count = 64

    @model_validator(mode="after")
    def _each_once(self) -> EnsembleSpec:
        if len(set(self.from_)) < len(self.from_):
            raise ValueError(f"an ensemble has each member once, got {self.from_}")
        if self.complexities and len(self.complexities) != len(self.from_):
            raise ValueError(f"{len(self.complexities)} complexities for {len(self.from_)} networks")
        return self


class CheckpointSpec(Strict):
    """A model that is there already: a Hugging Face directory or hub name. What it cost is not known, and counts nothing."""

    source: str


class ResourceSpec(Strict):
    """What a node may take where it runs. Nothing of it changes the result, beyond rounding.

    `processes` share a train node's batches, by torchrun. `cpus` and `gpus` are what the executors ray and slurm reserve.
    """

    processes: Annotated[int, Field(gt=0)] = 1
    cpus: Annotated[int, Field(gt=0)] = 1
    gpus: Annotated[int, Field(ge=0)] = 0


NodeKind = CheckpointSpec | TrainSpec | GrowSpec | FuseSpec | AssembleSpec | EnsembleSpec


class NodeSpec(Strict):
    """One node: exactly one of `checkpoint`, `train`, `grow`, `fuse`, `assemble` and `ensemble`; and perhaps what it may take."""

    checkpoint: CheckpointSpec | None = None

    train: TrainSpec | None = None
    grow: GrowSpec | None = None
    fuse: FuseSpec | None = None
    assemble: AssembleSpec | None = None
    ensemble: EnsembleSpec | None = None
    resources: ResourceSpec = ResourceSpec()

    @model_validator(mode="after")
    def _one_kind(self) -> NodeSpec:
        if len(self._kinds) != 1:
            raise ValueError(
                "a node is exactly one of `checkpoint`, `train`, `grow`, `fuse`, `assemble` and `ensemble`"
            )
        if self.resources.processes > 1 and not self.train:
            raise ValueError("only a train node is shared by several processes")
        return self

    @property
    def _kinds(self) -> dict[str, NodeKind]:
        given = {"checkpoint": self.checkpoint, "train": self.train, "grow": self.grow}
        given |= {"fuse": self.fuse, "assemble": self.assemble, "ensemble": self.ensemble}
        return {kind: spec for kind, spec in given.items() if spec is not None}

    @property
    def kind(self) -> str:
        """The one of its fields that is given: "train", "grow", ..."""
        (kind,) = self._kinds
        return kind

    @property
    def spec(self) -> NodeKind:
        return self._kinds[self.kind]

    @property
    def parents(self) -> list[str]:
        several = self.fuse or self.assemble or self.ensemble
        if several:
            return several.from_
        parent = self.grow.from_ if self.grow else self.train.from_ if self.train else None
        return [parent] if parent else []
