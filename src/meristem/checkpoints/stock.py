"""Names and shapes on disk, as stock transformers expects them, and in memory.

transformers converts when it loads and saves: experts that are fused in memory are separate on disk, and some
modules have other names there. It does so group by group (all experts of a layer make one tensor), so a
stream can do the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.streamed import Piece, Weights
from meristem.errors import MeristemError


@dataclass(frozen=True)
class Group:
    """Tensors on disk that become one or more tensors in memory together. If `converter` is None, they do not
    change.
    """

    key: str
    sources: tuple[tuple[str, str], ...]  # (name on disk, pattern of the converter that it matched)
    converter: Any

    def convert(self, model: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name in memory: tensor}. Raises MeristemError if transformers cannot convert them."""
        if self.converter is None:
            return {self.key: stored[self.sources[0][0]]}
        converter = copy.deepcopy(self.converter)
        for name, pattern in self.sources:
            converter.add_tensor(self.key, name, pattern, stored[name])
        try:
            made = converter.convert(self.key, model=model, config=model.config)
        except Exception as error:
            raise MeristemError(
                f"{self.sources[0][0]} and similar tensors cannot be converted to {self.key}: {error}"
            ) from error
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def groups_on_disk(
    model: nn.Module, names: Mapping[str, Tensor]
) -> tuple[dict[str, Group], dict[str, Tensor], list[str]]:
    """{name in memory: the group that makes it}, {name in memory: a stand-in}, and the names on disk that do
    not belong to the architecture.

    Args:
        model: the architecture, without weights.
        names: {name on disk: a stand-in on the meta device}.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)  # pyright: ignore[reportArgumentType]
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state: dict[str, Any] = model.state_dict()
    prefix = str(getattr(model, "base_model_prefix", ""))
    collected: dict[str, tuple[list[tuple[str, str]], Any]] = {}
    unplaced: list[str] = []
    for name in sorted(names, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if key not in state and name in state:
            key, pattern = rename_source_key(name, [], [], prefix, state)
        if key in state:
            sources, converter = collected.setdefault(key, ([], by_pattern[pattern] if pattern else None))
            if converter is None and sources:
                unplaced.append(name)  # its place is taken by a tensor of another name
            else:
                sources.append((name, pattern or name))
        else:
            unplaced.append(name)
    groups: dict[str, Group] = {}
    made: dict[str, Tensor] = {}
    for key, (sources, converter) in collected.items():
        group = Group(key, tuple(sources), converter)
        own = group.convert(model, names)
        groups |= dict.fromkeys(own, group)
        made |= own
    return groups, made, unplaced


@dataclass(frozen=True)
class Written:
    """Tensors in memory that are written together, and what they are on disk."""

    names: tuple[str, ...]
    layout: Mapping[str, Tensor]  # {name on disk: a stand-in on the meta device}
    direct: bool  # one tensor that is at most renamed

    def pieces(self, model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Piece]]:
        """(name on disk, (first rows of its places, rows)), contiguous, until all are complete."""
        (name, *_), (on_disk, *_) = self.names, self.layout
        span = weights.span(name) if self.direct and isinstance(weights, Weights) else None
        if span is not None:
            yield on_disk, ([0], span)
        elif self.direct and isinstance(weights, Weights):
            yield from ((on_disk, (places, rows.contiguous())) for places, rows in weights.pieces(name))
        elif self.direct:
            yield on_disk, ([0], weights[name].contiguous())
        else:
            made = _on_disk(model, {name: weights[name] for name in self.names})
            yield from ((name, ([0], tensor.contiguous())) for name, tensor in made.items())


def groups_to_write(model: nn.Module) -> list[Written]:
    """What stock `save_pretrained` writes for this model, in its order. No weight is read.

    Raises:
        MeristemError: if transformers converts across the groups that it forms.
    """
    from transformers.core_model_loading import WeightConverter, apply_converters, dot_natural_key
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    placeholders = {name: tensor.to("meta") for name, tensor in model.state_dict().items() if name not in ignored}
    state: dict[str, Tensor] = remove_tied_weights_from_state_dict(placeholders, model)  # pyright: ignore[reportArgumentType]
    conversions = _conversions(model)
    if conversions:
        model._weight_conversions = conversions  # pyright: ignore[reportArgumentType]: else transformers collects them again for each group that it converts
    reverse: list[Any] = [c.reverse_transform() for c in reversed(conversions) if isinstance(c, WeightConverter)]
    members: dict[str, list[str]] = {}
    cut_up: set[str] = set()
    for name in sorted(state, key=dot_natural_key) if conversions else state:
        key, pattern = apply_converters(name, reverse)
        members.setdefault(key if pattern else name, []).append(name)
        cut_up |= {name} if pattern else set()
    groups = []
    for names in members.values():
        layout = _on_disk(model, {name: state[name] for name in names}) if conversions else {n: state[n] for n in names}
        fresh = {name: torch.empty_like(t, memory_format=torch.contiguous_format) for name, t in layout.items()}
        groups.append(Written(tuple(names), fresh, direct=len(names) == len(layout) == 1 and names[0] not in cut_up))
    together = _on_disk(model, state) if conversions else state
    apart = {name: tensor.shape for group in groups for name, tensor in group.layout.items()}
    if apart != {name: tensor.shape for name, tensor in together.items()}:
        odd = sorted(set(apart) ^ set(together))[:1]
        raise MeristemError(f"transformers does not convert this {type(model).__name__} group by group ({odd})")
    return groups


def _conversions(model: nn.Module) -> list[Any]:
    """The conversions that transformers undoes when it saves this model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    used = getattr(model, "_weight_conversions", None)
    if used is not None:
        return list(used)
    known = get_model_conversion_mapping(model, add_legacy=False)  # pyright: ignore[reportArgumentType]
    return [conversion for conversion in known if not isinstance(conversion, PrefixChange)]


def _on_disk(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, dict(state))  # pyright: ignore[reportArgumentType]
