"""The recipe file: strict YAML. An unknown key is an error that names the nearest known one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from meristem.errors import MeristemError, nearest

if TYPE_CHECKING:
    from meristem.growth import Method

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def parse_count(value: Any) -> Any:
    """4M, 2.5k or a plain number."""
    match = re.fullmatch(r"([\d_.]+)\s*([kmbg]?)", str(value).strip().lower())
    return int(float(match.group(1).replace("_", "")) * _UNITS[match.group(2)]) if match else value


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]


class Strict(BaseModel):
    """A section of the recipe."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


class DataSpec(Strict):
    """Where the text comes from (see `data.open_corpus`) and how it is cut."""

    source: str = "python-stdlib"
    tokenizer: str = "bytes"
    text_column: str = "text"
    sequence_length: Annotated[int, Field(gt=1)] = 256
    eval_sequences: Annotated[int, Field(gt=0)] = 64


class TrainSpec(Strict):
    """Train a new model, or the one of another node, on `tokens` tokens with transformers' Trainer.

    `scale_learning_rate` steps each weight in proportion to the scale that a growth gave it (see
    `growth.optimizer.amplitudes`). `trainer` reaches every further TrainingArguments field (bf16, gradient_accumulation_steps, report_to, ...).
    """

    model: dict[str, Any] | None = None
    from_: str | None = Field(default=None, alias="from")
    tokens: Count
    learning_rate: Annotated[float, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)] = 16
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    evaluations: Annotated[int, Field(gt=0)] = 20
    scale_learning_rate: bool = False
    trainer: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_origin(self) -> TrainSpec:
        if (self.model is None) == (self.from_ is None):
            raise ValueError("give either `model` (a config to start from random numbers) or `from` (another node)")
        return self


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


class NodeSpec(Strict):
    """One node: exactly one of `train` and `grow`."""

    train: TrainSpec | None = None
    grow: GrowSpec | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> NodeSpec:
        if (self.train is None) == (self.grow is None):
            raise ValueError("a node is exactly one of `train` and `grow`")
        return self

    @property
    def parents(self) -> list[str]:
        parent = self.grow.from_ if self.grow else self.train.from_ if self.train else None
        return [parent] if parent else []


class RaceSpec(Strict):
    """Which node challenges which."""

    challenger: str
    baseline: str
    metric: Literal["eval_loss"] = "eval_loss"


class Recipe(Strict):
    """A graph of nodes, the data they train on, and perhaps a race between two of them."""

    data: DataSpec = DataSpec()
    nodes: dict[str, NodeSpec] = Field(min_length=1)
    race: RaceSpec | None = None
    seeds: list[int] = [0]

    @model_validator(mode="after")
    def _is_a_graph(self) -> Recipe:
        for name, node in self.nodes.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"node name {name!r}: use letters, digits, '-' and '_'")
            for parent in node.parents:
                if parent not in self.nodes:
                    raise ValueError(
                        f"node {name!r} comes from {parent!r}, which is no node; {nearest(parent, self.nodes)}"
                    )
        for asked in (self.race.challenger, self.race.baseline) if self.race else ():
            if asked not in self.nodes:
                raise ValueError(f"race names {asked!r}, which is no node; {nearest(asked, self.nodes)}")
        self.order()
        return self

    def order(self) -> list[str]:
        """Node names, parents first. Raises ValueError for a cycle."""
        done: list[str] = []

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise ValueError("the nodes form a cycle: " + " -> ".join([*path[path.index(name) :], name]))
            for parent in self.nodes[name].parents:
                visit(parent, (*path, name))
            if name not in done:
                done.append(name)

        for name in self.nodes:
            visit(name, ())
        return done

    def ancestors(self, name: str) -> list[str]:
        """All nodes that `name` comes from, itself included."""
        found = {name}
        for other in reversed(self.order()):
            if other in found:
                found |= set(self.nodes[other].parents)
        return [other for other in self.order() if other in found]


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        MeristemError: for a missing file, broken YAML, an unknown key, a wrong value, an unknown node or a cycle.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise MeristemError(f"cannot read recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MeristemError(f"{path} is not valid YAML: {error}") from error
    return parse_recipe(content, str(path))


def parse_recipe(content: Any, where: str = "recipe") -> Recipe:
    """A recipe from plain dictionaries; errors as in `load_recipe`."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise MeristemError("\n".join(f"{where}: {_explain(e)}" for e in error.errors())) from error


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        key, section = str(error["loc"][-1]), _section(error["loc"][:-1])
        return f"{place}: unknown key {key!r}; {nearest(key, section)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _section(location: tuple) -> list[str]:
    """The keys known at a place of the recipe."""
    sections = {"data": DataSpec, "race": RaceSpec, "train": TrainSpec, "grow": GrowSpec}
    names = [part for part in location if part in sections]
    if names:
        model: type[BaseModel] = sections[names[-1]]
    else:
        model = NodeSpec if location else Recipe
    return [field.alias or name for name, field in model.model_fields.items()]
