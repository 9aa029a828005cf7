"""Errors of a recipe file, in one sentence each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from meristem.errors import nearest
from meristem.recipes.specs.data_specs import TASKS, ImageSpec, PairSpec, SourceSpec, TextSpec
from meristem.recipes.specs.decay_spec import DecaySpec
from meristem.recipes.specs.guard_specs import EarlyStopSpec, SpikesSpec
from meristem.recipes.specs.method_specs import IncubateSpec
from meristem.recipes.specs.nodes import (
    AssembleSpec,
    AverageSpec,
    CheckpointSpec,
    EnsembleSpec,
    FuseSpec,
    GrowSpec,
    NodeSpec,
    ResourceSpec,
)
from meristem.recipes.specs.race_spec import RaceSpec
from meristem.recipes.specs.train_spec import TrainSpec
from meristem.recipes.specs.tune_spec import OnSpec, TuneSpec

FREE = (("trainer",), ("learning_rates",), ("model",))  # sections with any keys


def explain(error: Any, recipe: type[BaseModel]) -> str:
    """One sentence for an error of pydantic: the place, what was found there, and what would work.

    Args:
        error: one of `ValidationError.errors()`.
        recipe: the model of the whole file.
    """
    location = tuple(part for i, part in enumerate(error["loc"]) if (i, part) not in ((1, "text"), (1, "images")))
    place = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        key, section = str(location[-1]), _section(error["loc"][:-1], recipe)
        return f"{place}: unknown key {key!r}; {nearest(key, section)}"
    if error["type"] == "missing":
        return _missing(place, str(location[-1]), error["input"], _section(error["loc"][:-1], recipe))
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        found = "nothing" if error["input"] is None else repr(error["input"])[:80]
        known = "" if location[-1:] in FREE else f" ({', '.join(_section(error['loc'], recipe))})"
        return f"{place}: ".removeprefix(": ") + f"expected `key: value` entries{known}, found {found}"
    if place == "data.task":
        return f"{place}: unknown task {error['input']!r}; {nearest(str(error['input']), TASKS)}"
    if location[-1:] == ("[key]",) and error["type"] == "string_type":
        return f"{'.'.join(map(str, location[:-2]))}: the name {error['input']!r} is not text; put it in quotes"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":  # pydantic's own message does not say what was found
        message = message.replace("Input", "it", 1) + f", found {error['input']!r}"[:80]
    return f"{place}: {message}" if place else message


def _missing(place: str, key: str, found: Any, section: Sequence[str]) -> str:
    """A section without one of its keys, or with that key misspelt: options of methods have any name."""
    others = [str(name) for name in found if name not in section] if isinstance(found, Mapping) else []
    if misspelt := difflib.get_close_matches(key, others, 1):
        return f"{place.removesuffix(key)}{misspelt[0]}: unknown key {misspelt[0]!r}; did you mean {key!r}?"
    return f"{place}: the key {key!r} is missing"


def _section(location: tuple, recipe: type[BaseModel]) -> list[str]:
    """The known keys at a place of the recipe."""
    sections = {
        "data": TextSpec,
        "sources": SourceSpec,
        "decay": DecaySpec,
        "tune": TuneSpec,
        "on": OnSpec,
        "images": ImageSpec,
        "pairs": PairSpec,
        "race": RaceSpec,
        "train": TrainSpec,
        "grow": GrowSpec,
        "fuse": FuseSpec,
        "assemble": AssembleSpec,
        "average": AverageSpec,
        "ensemble": EnsembleSpec,
        "checkpoint": CheckpointSpec,
        "incubate": IncubateSpec,
        "resources": ResourceSpec,
        "early_stop": EarlyStopSpec,
        "spikes": SpikesSpec,
    }
    names = [part for part in location if part in sections]
    if names:
        model: type[BaseModel] = sections[names[-1]]
    else:
        model = NodeSpec if location else recipe
    return [field.alias or name for name, field in model.model_fields.items()]
