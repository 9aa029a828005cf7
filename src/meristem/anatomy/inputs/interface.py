"""The arguments of a network's forward, and the sizes in its config that inputs have to fit."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from meristem.errors import MeristemError

# What forward passes on without naming it (transformers' TransformersKwargs).
EVERYWHERE = frozenset(
    (
        "position_ids",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "seq_idx",
        "num_items_in_batch",
        "cache_position",
        "logits_to_keep",
    )
)
Group = dict[str, Any]  # some keyword arguments of forward


@dataclass(frozen=True)
class Interface:
    """The parameters of forward by name (True if there is no default), and the sizes of the inputs.

    Args:
        model: a transformers model. Only its class, its config and its embeddings are used.
        batch: the number of rows.
        length: the length of texts in tokens.
        generator: the source of everything random.
    """

    model: nn.Module
    batch: int
    length: int
    generator: torch.Generator

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.model).__name__

    @property
    def main(self) -> str:
        name = getattr(self.model, "main_input_name", None)
        return name[0] if isinstance(name, list | tuple) else str(name)

    @property
    def modalities(self) -> set[str]:
        found = getattr(self.model, "input_modalities", "text")
        return {found} if isinstance(found, str) else set(found)

    @cached_property
    def parameters(self) -> Mapping[str, bool]:
        found = inspect.signature(type(self.model).forward).parameters
        kept = {
            name: p.default is p.empty
            for name, p in found.items()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        kept.pop("self", None)
        return kept or {self.main: True}

    def takes(self, name: str) -> bool:
        return name in self.parameters

    def needs(self, name: str) -> bool:
        """Whether forward has this parameter without a default."""
        return self.parameters.get(name, False)

    def size(self, part: str, *fields: str, default: Any = None) -> Any:
        """The first of these fields that is set, first in the parts of the config whose names match `part`,
        then in the others.
        """
        for config in _parts(self.config, part):
            for field in fields:
                value = getattr(config, field, None)
                if value is not None and value != 0:
                    return value
        return default

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def randint(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)


def check_named(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Raises MeristemError for an argument that the forward of a transformers model does not name, because it
    would be ignored silently.
    """
    if not hasattr(model, "main_input_name"):
        return
    taken = inspect.signature(type(model).forward).parameters
    named = {name for name, p in taken.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - {"self"}
    unknown = [name for name, value in inputs.items() if isinstance(value, Tensor) and name not in named | EVERYWHERE]
    if named and unknown:
        raise MeristemError(
            f"the forward of {type(model).__name__} takes no {', '.join(unknown)}, so nothing would be shown of it; it takes "
            f"{', '.join(sorted(named))}"
        )


def _parts(config: Any, part: str) -> Iterator[Any]:
    """Nested configs with matching names (and everything in them), the config itself, then the other nested
    ones.
    """
    nested = {name: value for name, value in vars(config).items() if hasattr(value, "model_type")}
    matching = [name for name in nested if re.search(part, name)]
    for name in matching:
        yield from _all(nested[name])
    yield config
    for name in nested:
        if name not in matching:
            yield from _parts(nested[name], part)


def _all(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if hasattr(value, "model_type"):
            yield from _all(value)
