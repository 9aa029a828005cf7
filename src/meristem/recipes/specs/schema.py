"""The recipe file in strict YAML. An unknown key is an error that names the nearest known one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from meristem.errors import MeristemError, nearest
from meristem.recipes.specs.data_specs import DataSpec, ImageSpec, Strict, TextSpec
from meristem.recipes.specs.explain import explain
from meristem.recipes.specs.graph_checks import check_budget, check_parent, check_provenance
from meristem.recipes.specs.nodes import NodeSpec
from meristem.recipes.specs.race_spec import RaceSpec
from meristem.recipes.specs.yaml_file import read_yaml


class Recipe(Strict):
    """A graph of nodes, the data on which they are trained, and optionally a race between two of them. Every
    node runs once for each of the `seeds`.
    """

    data: DataSpec = TextSpec()
    nodes: dict[str, NodeSpec] = Field(min_length=1)
    race: RaceSpec | None = None
    seeds: Annotated[list[int], Field(min_length=1)] = [0]

    @model_validator(mode="before")
    @classmethod
    def _objective_follows_networks(cls, value: Any) -> Any:
        """Use the UL2 for decoders if the new networks are decoders."""
        data = value.get("data") if isinstance(value, dict) else None
        if not isinstance(data, dict) or data.get("task") != "ul2" or data.get("prefix_lm") is not None:
            return value
        decoders = are_decoders(value.get("nodes"))
        return value if decoders is None else {**value, "data": {**data, "prefix_lm": decoders}}

    @model_validator(mode="after")
    def _seeds_differ(self) -> Recipe:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} name one twice; equal seeds give equal results, not replicates")
        return self

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
                if self.nodes[parent].ensemble:
                    raise ValueError(
                        f"node {name!r} comes from {parent!r}, an ensemble, which leaves no single network"
                    )
                check_parent(name, node, self.nodes[parent], self.nodes, self.data)
            shared = set(self.seeds) & set(node.train.tune.on.seeds) if node.train and node.train.tune else set()
            if shared:
                raise ValueError(
                    f"node {name!r} is tuned on seeds {sorted(shared)}, which are the recipe's own; choose others"
                )
            if node.train and node.train.tokens and isinstance(self.data, ImageSpec):
                raise ValueError(f"node {name!r}: images have no tokens; say how many `examples` to train on")
            check_budget(name, node, self.nodes, self.data)
            varied = isinstance(self.data, ImageSpec) and self.data.augment
            if varied and node.train and node.train.incubate and node.train.incubate.cache_prefix:
                raise ValueError(f"node {name!r}: augmented images never repeat, so there is no prefix to cache")
        for asked in (self.race.challenger, self.race.baseline) if self.race else ():
            if asked not in self.nodes:
                raise ValueError(f"race names {asked!r}, which is no node; {nearest(asked, self.nodes)}")
            if not (self.nodes[asked].train or self.nodes[asked].decay):
                raise ValueError(
                    f"race names {asked!r}, a node of kind {self.nodes[asked].kind}; only train nodes have a loss curve"
                )
        self.order()
        for name, node in self.nodes.items():
            if node.train:
                check_provenance(name, node.train, (self.nodes[other] for other in self.ancestors(name)), self.nodes)
        return self

    def order(self) -> list[str]:
        """The names of the nodes, parents first.

        Raises:
            ValueError: if the nodes form a cycle.
        """
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

    def branching_steps(self, name: str) -> tuple[int, ...]:
        """The optimizer steps at which a train node saves its model for decays: those where decays branch
        off, and every `keep_every`.
        """
        train, length = self.nodes[name].train, getattr(self.data, "sequence_length", 0)
        if train is None:
            return ()
        decays = [node.decay for node in self.nodes.values() if node.decay and node.decay.from_ == name]
        steps, last = {train.step_at(decay.at, length) for decay in decays}, train.steps(length)
        if train.keep_every:
            every = train.step_at(train.keep_every, length)
            steps |= set(range(every, last, every))
        return tuple(sorted(step for step in steps if step < last))

    def steps_between(self, name: str) -> int:
        """The optimizer steps between the checkpoints of one run that an average takes. 0 for other nodes."""
        average, length = self.nodes[name].average, getattr(self.data, "sequence_length", 0)
        if not average or not average.last:
            return 0
        run = self.nodes[self.nodes[name].parents[0]].train
        assert run is not None
        return run.step_at(run.keep_every or 0, length)

    def ancestors(self, name: str) -> list[str]:
        """All nodes from which `name` comes, including itself."""
        found = {name}
        for other in reversed(self.order()):
            if other in found:
                found |= set(self.nodes[other].parents)
        return [other for other in self.order() if other in found]


def are_decoders(nodes: Any) -> bool | None:
    """Whether the new networks of these nodes are decoders and not encoder-decoders. None if that is not
    known.

    Raises:
        ValueError: if some are decoders and some are not.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    trains = [node.get("train") for node in nodes.values() if isinstance(node, dict)] if isinstance(nodes, dict) else []
    models = [train["model"] for train in trains if isinstance(train, dict) and isinstance(train.get("model"), dict)]
    types = [str(model.get("model_type")) for model in models]
    both = [kind for kind in types if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES]
    alone = [kind for kind in types if kind not in both and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if both and alone:
        raise ValueError(
            f"ul2 reads data differently for {both[0]} (an encoder-decoder) than for {alone[0]} (a decoder); give each a recipe of its own"
        )
    return bool(alone) if both or alone else None


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Args:
        path: the file.

    Raises:
        MeristemError: for a missing file, broken YAML, an unknown key, a wrong value, an unknown node or a
            cycle.
    """
    path = Path(path)
    try:
        content = read_yaml(path.read_text())
    except OSError as error:
        raise MeristemError(f"cannot read recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MeristemError(f"{path} is not valid YAML: {error}") from error
    return parse_recipe(content, str(path))


def parse_recipe(content: Any, where: str = "recipe") -> Recipe:
    """A recipe from plain dictionaries.

    Raises:
        MeristemError: as in `load_recipe`.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise MeristemError("\n".join(f"{where}: {explain(e, Recipe)}" for e in error.errors())) from error
