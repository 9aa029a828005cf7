"""The options of training-time methods in a recipe file, which are checked when it is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from meristem.errors import MeristemError, nearest
from meristem.recipes.specs.data_specs import Strict

MANY = 1000  # layers and steps, where a schedule is only tried

if TYPE_CHECKING:
    from meristem.incubation import Division
    from meristem.kernels import MajorityKernels
    from meristem.subnetworks import Schedule


class SubnetworkSpec(BaseModel):
    """Train a part of the network at each step. `kind` is the schedule, and its options are given next to it.

    The numbers of blocks and steps follow from the run. `full_model` is the share of the run before the first
    stage.
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
            "seed",
        }
        for name in self.__pydantic_extra__ or {}:
            if name not in known:
                raise ValueError(f"{self.kind} has no option {name!r}; {nearest(name, known)}")
        if self.kind == "raptr" and not (self.__pydantic_extra__ or {}).get("stages"):
            raise ValueError("raptr needs stages: how many blocks run in each, for example [6, 9, 12] of 12")
        if self.full_model and self.kind != "raptr":
            raise ValueError(f"{self.kind} has no full_model phase; that is an option of raptr")
        if self.kind not in ("raptr", "bottom_layers"):
            self.check(MANY)  # their options fit any depth, or none
        return self

    def check(self, num_hidden_layers: int) -> None:
        """Whether the options fit a network of so many layers.

        Raises:
            ValueError: if they do not.
        """
        try:
            self.schedule(num_hidden_layers, MANY, 0, ())
        except (MeristemError, TypeError) as error:
            raise ValueError(str(error)) from error

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
        """The schedule for a list of blocks. The blocks `needed` always run.

        Raises:
            MeristemError: if an option does not fit the network.
        """
        options: dict[str, Any] = {**(self.__pydantic_extra__ or {}), "seed": seed}
        if self.kind == "raptr":
            options["fixed_layers"] = (*options.get("fixed_layers", (0, -1)), *needed)
            options["full_model_steps"] = round(self.full_model * total_steps)
        return self._schedule_class(num_hidden_layers, total_steps, **options)


class MajoritySpec(BaseModel):
    """Train several kernels in each layer and save their mean. The options are those of `MajorityKernels`.
    `start` is "clone" by default if the weights are already trained.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="after")
    def _known_options(self) -> MajoritySpec:
        try:
            self.options(0, "scratch")
        except MeristemError as error:
            raise ValueError(str(error)) from error
        if "seed" in (self.__pydantic_extra__ or {}):
            raise ValueError("majority has no seed of its own in a recipe; it follows `seeds` and the node's `seed`")
        return self

    def options(self, seed: int, start: str) -> MajorityKernels:
        """The options with the seed of the run. `start` is used if the recipe gives none."""
        from meristem.kernels import MajorityKernels

        return MajorityKernels.of({"start": start, **(self.__pydantic_extra__ or {}), "seed": seed})


class DistillSpec(Strict):
    """Also learn from the outputs of another node's model, the `teacher` (see `modifiers.distillation`). The
    loss is (1 - weight) times the loss of the task plus weight times T^2 KL(teacher || student), both
    softened by the `temperature` T.
    """

    teacher: str
    temperature: Annotated[float, Field(gt=0)] = 2.0
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5


class FreshSpec(Strict):
    """The `learning_rate` of the entries that a growth has added. It rises over the share `warmup` of the
    run.
    """

    learning_rate: Annotated[float, Field(gt=0)]
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0


class IncubateSpec(Strict):
    """The module to train, and the division that it belongs to (Deep Incubation, see `incubation.incubate`).

    `num_hidden_layers` is that of the large network. For a network with several lists of blocks, it is the
    number in each. `modules` is the number of modules, and `module` is the one to train, counted from 0.
    `meta_layers` is the number of blocks of the meta network for each module. `start` is `random`, or `clone`
    for copies of the meta network's blocks. `costs` holds the cost of every block, by which the modules are
    balanced. `cache_prefix` runs the blocks before the module only once for each example.
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
