"""Open a model directory without reading its weights: the network reads them from disk, block by block, while
it runs.
"""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meristem.anatomy.conventions import DEPTH_FIELDS, FIELDS
from meristem.anatomy.fields import text_part
from meristem.anatomy.instances import switches
from meristem.anatomy.shared_names import names_of_parameters
from meristem.anatomy.streamed import Span, Weights, streamed
from meristem.checkpoints.architecture import architecture_of
from meristem.checkpoints.companions import leads_out
from meristem.checkpoints.quantised import check_not_quantised
from meristem.checkpoints.source import Source, find_source
from meristem.checkpoints.stock import groups_on_disk
from meristem.checkpoints.stored import StoredTensors
from meristem.checkpoints.unplaced import check_unplaced
from meristem.errors import MeristemError, first_line
from meristem.growth.tensors.build import skeleton

DEPTHS = {field for fields in DEPTH_FIELDS.values() for field in fields}
SIZES = DEPTHS | {field for fields in FIELDS.values() for field in fields}


class MissingTensors(MeristemError):
    """The files lack tensors of the architecture."""


def open_streamed(source: str | Source, trust_remote_code: bool = False, drop: Sequence[str] = ()) -> Any:
    """Open the same model as `open_model`, with its weights left on disk (see `anatomy.streamed`).

    Opening reads the headers of the files only. A run needs the memory of one block and of the tensors
    outside blocks.

    Args:
        source: a directory, a hub name, or what `find_source` made from either.
        trust_remote_code: run code that comes with the checkpoint. Without it, nothing from the checkpoint is
            run.
        drop: names of tensors in the files that may be left out. `*` matches anything.

    Raises:
        MeristemError: as `open_model`.
    """
    return streamed(*read_lazily(source, trust_remote_code, drop), checked=True)


def read_lazily(
    source: str | Source, trust_remote_code: bool = False, drop: Sequence[str] = ()
) -> tuple[nn.Module, Weights]:
    """The architecture with its parameters on the meta device, and what reads each of its tensors. The
    arguments are those of `open_model`.
    """
    found = find_source(source, trust_remote_code)
    model_class, config = architecture_of(found, trust_remote_code)
    stored = StoredTensors(found.path)
    _check_sizes(config, stored, found)
    model, weights, flags = read_fitting(model_class, config, stored, found, drop)
    if flags:
        said = ", ".join(f"{name}={value}" for name, value in flags.items())
        warnings.warn(
            f"{found}: its files fit {model_class.__name__}(config, {said}), which it is read as; from_pretrained draws what they lack "
            "at random",
            stacklevel=2,
        )
    if getattr(model, "generation_config", None) is not None:
        model.generation_config = _generation_config(found.path)
    return model, weights


def read_fitting(
    model_class: type, config: Any, stored: StoredTensors, source: Source, drop: Sequence[str] = ()
) -> tuple[nn.Module, Weights, dict[str, bool]]:
    """The architecture, what reads its tensors, and the switches of its constructor with which the files have
    all of them (`BertModel(config, add_pooling_layer=False)`), if it takes any.

    Raises:
        MeristemError: as `read_weights`.
    """
    model = without_weights(model_class, config, source)
    try:
        return model, read_weights(model, stored, source, drop), {}
    except MissingTensors:
        for flags in switches(model_class):
            with contextlib.suppress(MeristemError):
                other = without_weights(model_class, config, source, **flags)
                return other, read_weights(other, stored, source, drop), flags
        raise


def read_weights(model: nn.Module, stored: StoredTensors, source: Source, drop: Sequence[str] = ()) -> Weights:
    """What reads every tensor of an architecture from files, by the rules of transformers.

    Raises:
        MeristemError: if tensors are missing, do not belong to the architecture or have other shapes, or if
            tied tensors are stored with different values.
    """
    placeholders = {n: torch.empty(e.shape, dtype=e.dtype, device="meta") for n, e in stored.entries.items()}
    check_not_quantised(source, placeholders, model.state_dict())
    groups, shapes, unplaced = groups_on_disk(model, placeholders)
    check_unplaced(source, model, {name: stored.entries[name].shape for name in unplaced}, drop)

    def fetch(name: str) -> torch.Tensor:
        return groups[name].convert(model, stored)[name]

    def span(name: str) -> Span | None:
        entry = stored.entries[groups[name].sources[0][0]]
        return Span(entry.file, entry.start, entry.bytes) if groups[name].converter is None else None

    weights = weights_from(source, model, shapes, fetch, span)
    _check_ties(source, model, groups, fetch)
    return weights


def without_weights(model_class: type, config: Any, source: Source, **flags: bool) -> nn.Module:
    """The architecture of a config, with its parameters on the meta device. Raises MeristemError if the
    config cannot be built.

    Args:
        flags: switches of the constructor.
    """
    try:
        return skeleton(lambda: model_class(config, **flags))
    except Exception as error:
        raise MeristemError(f"{source}: its config builds no {model_class.__name__}: {first_line(error)}") from error


def weights_from(
    source: Source,
    model: nn.Module,
    found: Mapping[str, torch.Tensor],
    fetch: Callable[[str], torch.Tensor],
    span: Callable[[str], Span | None] = lambda _: None,
) -> Weights:
    """Every tensor of the architecture: fetched, or its own if checkpoints leave it out.

    Args:
        source: the result of `find_source`.
        model: the architecture.
        found: {name: a stand-in with its shape and dtype} of the tensors that can be fetched. Tied tensors
            have one name or several.
        fetch: a function that returns the tensor of a name.
        span: a function that returns the place of a tensor in a file, if it is stored unchanged, and None
            otherwise.

    Raises:
        MeristemError: if a tensor is missing or has another shape.
    """
    state = model.state_dict()
    homes = {name: name for name in found}
    for names in names_of_parameters(model):
        home = next((name for name in names if name in found), None)
        homes |= {name: home for name in names if home and name not in found}
    dtype = next((tensor.dtype for tensor in found.values() if tensor.is_floating_point()), torch.float32)
    own = {
        name: _fresh(model, name).to(dtype) if state[name].is_meta else state[name]
        for name in state
        if name not in homes and _may_be_missing(model, name)
    }
    missing = sorted(set(state) - set(homes) - set(own))
    if missing:
        raise MissingTensors(
            f"{source}: {len(missing)} tensors of {type(model).__name__} are missing from its files, such as {missing[0]}; "
            "config.json does not fit the weights"
        )
    for name in state:
        if name in homes and found[homes[name]].shape != state[name].shape:
            raise MeristemError(
                f"{source}: {name} is {tuple(found[homes[name]].shape)} in its files and {tuple(state[name].shape)} by its "
                "config; config.json does not fit the weights"
            )
    dtypes = {name: found[homes[name]].dtype if name in homes else own[name].dtype for name in state}
    return Weights(
        dtypes,
        lambda name: fetch(homes[name]) if name in homes else own[name],
        span=lambda name: span(homes[name]) if name in homes else None,
    )


def _may_be_missing(model: nn.Module, name: str) -> bool:
    """Whether checkpoints leave a tensor out, because the architecture computes it (Marian's sinusoids) or
    because it is not read (the number of batches that a batch norm has seen).
    """
    patterns = [*(getattr(model, "_keys_to_ignore_on_load_missing", None) or ()), r"\bnum_batches_tracked$"]
    return any(re.search(pattern, name) for pattern in patterns)


def _fresh(model: Any, name: str) -> torch.Tensor:
    """A parameter as the architecture initialises it."""
    path, _, leaf = name.rpartition(".")
    owner = copy.deepcopy(model.get_submodule(path)).to_empty(device="cpu", recurse=False)
    model._init_weights(owner)
    return owner.get_parameter(leaf).detach()


def _check_ties(source: Source, model: nn.Module, found: Container[str], fetch: Callable[[str], torch.Tensor]) -> None:
    """Check that tensors that are one in memory and stored twice are stored with equal values."""
    for names in names_of_parameters(model):
        stored = [name for name in names if name in found]
        for other in stored[1:]:
            if not torch.equal(fetch(stored[0]), fetch(other)):
                raise MeristemError(
                    f"{source}: its config ties {stored[0]} to {other}, its files hold different values for them; "
                    "set tie_word_embeddings to false in config.json if they are two"
                )


def _check_sizes(config: Any, stored: StoredTensors, source: Source) -> None:
    """Do not build a config that asks for more layers than there are tensors, or for negative sizes."""
    for part in (config, text_part(config)):
        for name, size in vars(part).items():
            if isinstance(size, int) and size < 0 and name in SIZES:
                raise MeristemError(f"{source}: config.json says {name}={size}, which is not a size")
            if isinstance(size, int) and size > len(stored) and name in DEPTHS:
                raise MeristemError(
                    f"{source}: config.json says {name}={size}, but its files hold {len(stored)} tensors in all"
                )


def _generation_config(path: Path) -> Any:
    """The generation config from its own file or, as stock transformers does, from the generation entries of
    config.json (BART).
    """
    from transformers import GenerationConfig

    own = (path / "generation_config.json").is_file()
    if own and leads_out(path / "generation_config.json", path):
        raise MeristemError(
            f"{path / 'generation_config.json'} is a link out of the model's directory, which is not followed; put the file there"
        )
    try:
        if own:
            return GenerationConfig.from_pretrained(path)
        return GenerationConfig.from_pretrained(path, config_file_name="config.json", _from_model_config=True)
    except Exception as error:
        file = path / ("generation_config.json" if own else "config.json")
        raise MeristemError(f"{file} is not a generation config: {first_line(error)}") from error
