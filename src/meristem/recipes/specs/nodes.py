"""The nodes of a recipe file: the options of each kind, which are checked when it is read."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from meristem.errors import MeristemError
from meristem.recipes.specs.data_specs import Count, Strict
from meristem.recipes.specs.decay_spec import DecaySpec
from meristem.recipes.specs.train_spec import TrainSpec
from meristem.streams import Streams

if TYPE_CHECKING:
    from meristem.growth import DeepFusion, Method


class GrowSpec(BaseModel):
    """Grow the model of another node by one `method`, or by several one after another. The options of the
    methods are given next to `method`. `optimizer` is `carry` to grow the optimizer state too, or `reset`.
    """

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
        from meristem.growth.methods.options import build_methods

        names = [self.method] if isinstance(self.method, str) else self.method
        return build_methods(names, self.__pydantic_extra__ or {}, METHODS)

    @property
    def seed(self) -> int:
        """The node's own seed, if its methods name one."""
        return int((self.__pydantic_extra__ or {}).get("seed", 0))

    @property
    def is_learned(self) -> bool:
        """Whether a method learns its growth, or chooses, from the recipe's data."""
        from meristem.growth import LiGO, Prune

        return any(isinstance(method, LiGO | Prune) for method in self.build_methods())

    def seeded_methods(self, streams: Streams) -> list[Method]:
        """The methods, each with its own random numbers."""
        return [
            replace(method, seed=streams.seed("growth", position)) if _has_seed(method) else method
            for position, method in enumerate(self.build_methods())
        ]


def _has_seed(method: Method) -> bool:
    return any(field.name == "seed" for field in fields(method))


class FuseSpec(Strict):
    """Fuse the models of several nodes (Deep Fusion, see `DeepFusion`). Naming a node twice is self-fusion.

    `weights` are the weights of the parents in the logits, equal by default. `norm` is how norms over the
    units of all parents are handled: plain, equalised or grouped. `noise` breaks the symmetry of a
    self-fusion, and is relative to the standard deviation of each tensor. `allow_differences` fuses parents
    whose configs compute differently. With `experts`, the feed-forward blocks of the parents become experts,
    of which each token gets `experts_per_token`, and all other tensors are averaged. `optimizer` is `carry`
    to fuse the optimizer states too, or `reset`.
    """

    from_: Annotated[list[str], Field(alias="from", min_length=2)]
    weights: list[float] | None = None
    norm: Literal["plain", "equalised", "grouped"] = "plain"
    noise: float | None = None
    allow_differences: bool = False
    experts: bool = False
    experts_per_token: int = 2
    optimizer: Literal["carry", "reset"] = "reset"

    @model_validator(mode="after")
    def _weights_fit(self) -> FuseSpec:
        try:
            self.method(0).convex(len(self.from_))
        except MeristemError as error:
            raise ValueError(str(error)) from error
        return self

    def method(self, seed: int) -> DeepFusion:
        from meristem.growth.methods.deep_fusion import DeepFusion

        more = {
            "allow_differences": self.allow_differences,
            "experts": self.experts,
            "experts_per_token": self.experts_per_token,
        }
        return DeepFusion(weights=self.weights, norm=self.norm, noise=self.noise, seed=seed, **more)


class AssembleSpec(Strict):
    """Assemble the modules that other nodes incubated. Their order does not matter."""

    from_: Annotated[list[str], Field(alias="from", min_length=2)]


class AverageSpec(Strict):
    """The mean of checkpoints, instead of a decay. With `last`, it is the mean of the last checkpoints that a
    train node with `keep_every` has kept, including its end. Otherwise it is the mean of several nodes, the
    oldest first. `weights` is mean, 1-sqrt or cosine, by the decay that they replace, or a number for each
    checkpoint.
    """

    from_: Annotated[str | list[str], Field(alias="from")]
    last: Annotated[int, Field(gt=1)] | None = None
    weights: Literal["mean", "1-sqrt", "cosine"] | list[Annotated[float, Field(ge=0)]] = "mean"

    @model_validator(mode="after")
    def _one_way(self) -> AverageSpec:
        if isinstance(self.from_, str) == (self.last is None):
            raise ValueError("average takes `from: NODE` with `last: N`, or `from: [A, B, ...]` without")
        if isinstance(self.from_, list) and len(set(self.from_)) < max(2, len(self.from_)):
            raise ValueError(f"an average needs at least two different nodes, got {self.from_}")
        count = self.last or len(self.from_)
        if not isinstance(self.weights, str) and (len(self.weights) != count or not sum(self.weights)):
            raise ValueError(f"{len(self.weights)} weights for {count} checkpoints; give one for each, not all zero")
        return self


class EnsembleSpec(Strict):
    """Choose networks of other nodes round by round, and mix them (AdaNet, see `recipes.nodes.ensemble`).

    `examples` is the number of examples on which the candidates are judged. `adanet_lambda` and `adanet_beta`
    are the prices of their mixture weights. `complexities` is the complexity of each network, by default the
    square root of its depth.
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
            raise ValueError(f"an ensemble needs different members, got {self.from_}")
        if self.complexities and len(self.complexities) != len(self.from_):
            raise ValueError(f"{len(self.complexities)} complexities for {len(self.from_)} networks")
        return self


class CheckpointSpec(Strict):
    """An existing model: a Hugging Face directory or a hub name. The cost of its training is unknown and
    counts as zero.
    """

    source: str


class ResourceSpec(Strict):
    """The resources of a node. They do not change its result beyond rounding.

    `processes` share the batches of a train node, by torchrun. `cpus` and `gpus` are reserved by the
    executors ray and slurm.
    """

    processes: Annotated[int, Field(gt=0)] = 1
    cpus: Annotated[int, Field(gt=0)] = 1
    gpus: Annotated[int, Field(ge=0)] = 0


NodeKind = CheckpointSpec | TrainSpec | DecaySpec | GrowSpec | FuseSpec | AverageSpec | AssembleSpec | EnsembleSpec


class NodeSpec(Strict):
    """One node. It has exactly one of `checkpoint`, `train`, `decay`, `grow`, `fuse`, `average`, `assemble`
    and `ensemble`. It can also have `resources`.
    """

    checkpoint: CheckpointSpec | None = None

    train: TrainSpec | None = None
    decay: DecaySpec | None = None
    grow: GrowSpec | None = None
    fuse: FuseSpec | None = None
    average: AverageSpec | None = None
    assemble: AssembleSpec | None = None
    ensemble: EnsembleSpec | None = None
    resources: ResourceSpec = ResourceSpec()

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: Any) -> Any:
        """Say of `train:` without anything below it that it is empty."""
        empty = [key for key in value if value[key] is None] if isinstance(value, dict) else []
        if len(empty) == len(value or ()) == 1 and empty[0] in cls.model_fields:
            raise ValueError(f"{empty[0]} is empty; give its options as `key: value` entries")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> NodeSpec:
        if len(self._kinds) != 1:
            raise ValueError(
                "a node is exactly one of `checkpoint`, `train`, `grow`, `fuse`, `average`, `assemble` and `ensemble`, or a `decay`"
            )
        if self.resources.processes > 1 and not (self.train or self.decay):
            raise ValueError("only a train node or a decay can use several processes")
        if self.train and self.resources.processes > 1:
            self.train.check_conflicts({"processes"})
            parts = self.train.trainer.get("gradient_accumulation_steps", 1) * self.resources.processes
            if self.train.batch_size % parts:
                raise ValueError(
                    f"batch_size {self.train.batch_size} cannot be cut into {parts} equal parts (processes, accumulation)"
                )
        return self

    @property
    def _kinds(self) -> dict[str, NodeKind]:
        given = {"checkpoint": self.checkpoint, "train": self.train, "decay": self.decay, "grow": self.grow}
        given |= {"fuse": self.fuse, "average": self.average, "assemble": self.assemble, "ensemble": self.ensemble}
        return {kind: spec for kind, spec in given.items() if spec is not None}

    @property
    def kind(self) -> str:
        """The field that is given: "train", "grow", ..."""
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
        if self.average:
            return [self.average.from_] if isinstance(self.average.from_, str) else self.average.from_
        parent = next((own.from_ for own in (self.grow, self.decay, self.train) if own), None)
        teacher = self.train.distill.teacher if self.train and self.train.distill else None
        return [name for name in (parent, teacher) if name]

    @property
    def reads_data(self) -> bool:
        """Whether its result depends on the recipe's data, apart from the data that its parents have read."""
        return bool(self.train or self.decay or self.ensemble or self.average or (self.grow and self.grow.is_learned))

    @property
    def seed(self) -> int:
        """The node's own seed."""
        return self.train.seed if self.train else self.grow.seed if self.grow else 0

    def identity(self) -> dict[str, Any]:
        """Everything on which its result depends. Where it can be resumed and what it saves during training
        are left out.
        """
        return self.spec.model_dump(by_alias=True, exclude={"checkpoint_every", "keep_every", "tune"})
