"""Opening a model directory without reading its weights: a network that takes them from disk, block by block, as it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meristem.anatomy.conventions import DEPTH_FIELDS, FIELDS
from meristem.anatomy.streamed import Weights, streamed
from meristem.checkpoints.open import first_line, local_directory, missing_tensors, model_class_of, open_config
from meristem.checkpoints.stock import Group, groups_on_disk
from meristem.checkpoints.stored import StoredTensors
from meristem.errors import MeristemError
from meristem.growth.build import skeleton

DEPTHS = {field for fields in DEPTH_FIELDS.values() for field in fields}
SIZES = DEPTHS | {field for fields in FIELDS.values() for field in fields}


def open_streamed(source: str, trust_remote_code: bool = False) -> Any:
    """The same model with its weights left on disk, in the dtypes that they are stored in (see `anatomy.streamed`).

    Opening costs the headers of the files; running it takes the memory of one block.

    Raises:
        MeristemError: as `open_model`; and for quantised weights, which have no units to grow.
    """
    config = open_config(source, trust_remote_code)
    model_class = model_class_of(config, source, trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise MeristemError(f"{source} is quantised; grow the weights that it was made from")
    stored = StoredTensors(local_directory(source))
    _check_sizes(config, stored, source)
    try:
        model = skeleton(lambda: model_class(config))
        state = model.state_dict()
    except Exception as error:
        raise MeristemError(f"{source}: its config builds no {model_class.__name__}: {first_line(error)}") from error
    placeholders = {n: torch.empty(e.shape, dtype=e.dtype, device="meta") for n, e in stored.entries.items()}
    groups = groups_on_disk(model, placeholders)
    homes = _homes(model, groups)
    missing = sorted(set(state) - set(homes) - {name for name, tensor in state.items() if not tensor.is_meta})
    if missing:
        raise missing_tensors(source, missing, model_class)
    shapes: dict[str, Any] = {}
    for group in dict.fromkeys(groups.values()):
        shapes |= group.convert(model, placeholders)
    for name, home in homes.items():
        if shapes[home].shape != state[name].shape:
            raise MeristemError(
                f"{source}: {name} is {tuple(shapes[home].shape)} in its files and {tuple(state[name].shape)} by its "
                "config; config.json and the weights do not belong together"
            )
    _check_ties(model, homes, groups, stored, source)

    def fetch(name: str) -> torch.Tensor:
        if name not in homes:  # a buffer that the architecture makes by itself
            return state[name]
        return groups[homes[name]].convert(model, stored)[homes[name]]

    dtypes = {name: shapes[homes[name]].dtype if name in homes else tensor.dtype for name, tensor in state.items()}
    generation = local_directory(source) / "generation_config.json"
    if generation.is_file() and hasattr(model, "generation_config"):
        model.generation_config = _generation_config(generation)
    return streamed(model, Weights(dtypes, fetch))


def _homes(model: nn.Module, groups: Mapping[str, Group]) -> dict[str, str]:
    """{name in the state dict: the name under which the files have it}; tied tensors may be stored under either name."""
    twins: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        twins.setdefault(id(parameter), []).append(name)
    homes = {name: name for name in groups}
    for names in twins.values():
        found = next((name for name in names if name in groups), None)
        homes |= {name: found for name in names if found and name not in groups}
    return homes


def _check_ties(
    model: nn.Module, homes: Mapping[str, str], groups: Mapping[str, Group], stored: StoredTensors, source: str
) -> None:
    """Tensors that are one in memory and stored twice have to be stored alike."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        twin = first.setdefault(id(parameter), name)
        if twin != name and homes[twin] != homes[name]:
            ours, theirs = (groups[homes[n]].convert(model, stored)[homes[n]] for n in (twin, name))
            if not torch.equal(ours, theirs):
                raise MeristemError(
                    f"{source}: its config ties {twin} to {name}, its files hold different values for them; "
                    "set tie_word_embeddings to false in config.json if they are two"
                )


def _check_sizes(config: Any, stored: StoredTensors, source: str) -> None:
    """A config that asks for more layers than there are tensors, or for less than nothing, is not built at all."""
    for part in (config, config.get_text_config()):
        for name, size in vars(part).items():
            if isinstance(size, int) and size < 0 and name in SIZES:
                raise MeristemError(f"{source}: config.json says {name}={size}, which is no size")
            if isinstance(size, int) and size > len(stored) and name in DEPTHS:
                raise MeristemError(
                    f"{source}: config.json says {name}={size}, but its files hold {len(stored)} tensors in all"
                )


def _generation_config(file: Path) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(file.parent)
    except Exception as error:
        raise MeristemError(f"{file} is not a generation config: {first_line(error)}") from error
