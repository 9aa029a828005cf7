"""The config of a target: read from whatever names one, and its entries that are not sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from meristem.anatomy.fields import read_field, text_part
from meristem.anatomy.huggingface import HuggingFaceBuilder
from meristem.errors import MeristemError, first_line, nearest
from meristem.nowhere import nothing_here, why_not_fetched

# Config entries that say where a checkpoint comes from or how it is run, and nothing about its function.
BOOKKEEPING = (
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "return_dict", "id2label",
    "label2id", "task_specific_params", "finetuning_task", "problem_type", "_attn_implementation", "_attn_implementation_autoset",
    "output_attentions", "output_hidden_states", "_commit_hash", "initializer_range", "initializer_factor", "auto_map",
)  # fmt: skip
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
WANTED = "a target is a transformers config, or names a config.json, a model directory or a model on the hub"


def read_target(target: Any) -> Any:
    """A transformers config.

    Args:
        target: a config, a network that has one, a mapping with the entries of one, the path of a config.json
            or of a model directory, or a hub name (of which only the config is read, and no code is run).

    Raises:
        MeristemError: if there is no config. The message says why.
    """
    if isinstance(target, nn.Module):
        target = getattr(target, "config", target)
    if hasattr(target, "model_type") and hasattr(target, "to_dict"):
        return target
    if isinstance(target, Mapping):
        return _config(dict(target), "the target")
    if not isinstance(target, str | Path):
        raise MeristemError(f"{WANTED}; got a {type(target).__name__}")
    path = Path(target)
    path = path / "config.json" if path.is_dir() else path
    if path.is_file():
        return _config(_entries(path), str(path))
    if Path(target).is_dir():
        raise MeristemError(f"{target}: there is no config.json in this directory; {WANTED}")
    if path.suffix == ".json":
        raise MeristemError(f"{target}: no such file; {WANTED}")
    if len(path.parts) > 2 or path.is_absolute():
        raise MeristemError(f"{target}: {nothing_here(target)}; {WANTED}")
    from transformers import PretrainedConfig

    try:
        entries, _ = PretrainedConfig.get_config_dict(str(target))
    except Exception as error:  # whatever the hub's client raises
        raise MeristemError(
            f"{target}: {nothing_here(target)}, and {why_not_fetched(str(target), error)}; {WANTED}"
        ) from error
    return _config(entries, str(target))


def _entries(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise MeristemError(f"{path}: not valid JSON: {first_line(error)}; {WANTED}") from error


def _config(entries: Any, name: str) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = entries.get("model_type") if isinstance(entries, dict) else None
    if not isinstance(kind, str):
        raise MeristemError(f'{name}: this config has no model_type, such as "llama"')
    if kind not in CONFIG_MAPPING_NAMES:
        close = nearest(kind, CONFIG_MAPPING_NAMES)
        raise MeristemError(
            f"{name}: transformers knows no model_type {kind!r}" + (f"; {close}" if "did you" in close else "")
        )
    try:
        return AutoConfig.for_model(**_without_implementations(entries))
    except Exception as error:  # strict dataclasses, validators, and what the classes do themselves
        reason = first_line(error.__cause__ or error)
        raise MeristemError(f"{name}: transformers does not accept this {kind} config: {reason}") from error


def _without_implementations(entries: Any) -> Any:
    """The entries without those that say by which code the target runs. Here it only states sizes."""
    if isinstance(entries, list):
        return [_without_implementations(entry) for entry in entries]
    if not isinstance(entries, dict):
        return entries
    kept = {k: v for k, v in entries.items() if not (str(k).endswith("_implementation") or k == "auto_map")}
    return {key: _without_implementations(value) for key, value in kept.items()}


def aimed_at(builder: HuggingFaceBuilder, config: Any, **reading: Any) -> HuggingFaceBuilder:
    """The builder of the target's network.

    Raises:
        MeristemError: if one of its sizes is not a positive whole number, or if it builds no network.
    """
    for path in (*builder.fields.paths.values(), *builder.fields.depth_paths.values()):
        size = read_field(config, path)
        if type(size) is int and size < 1:
            raise MeristemError(f"the target's {path} is {size}; a positive whole number would work")
    try:
        return HuggingFaceBuilder(builder.model_class, config, **reading)
    except MeristemError:
        raise
    except Exception as error:  # what the class of the network raises over its config
        raise MeristemError(
            f"the target's config builds no network: {type(error).__name__}: {first_line(error)}"
        ) from error


def check_tokens(ours: Any, theirs: Any) -> None:
    """Raises MeristemError if the vocabulary or the special tokens differ, because ids then mean other
    words.
    """
    special = [
        name
        for name in TOKENS
        if isinstance(getattr(ours, name, None), int) and isinstance(getattr(theirs, name, None), int)
    ]
    moved = [name for name in special if getattr(ours, name) != getattr(theirs, name)]
    sizes = [getattr(text_part(config), "vocab_size", None) for config in (ours, theirs)]
    if sizes[0] != sizes[1] and moved:
        told = ", ".join(f"{name} {getattr(ours, name)} -> {getattr(theirs, name)}" for name in moved)
        raise MeristemError(
            f"the target has another tokenizer (vocab_size {sizes[0]} -> {sizes[1]}, {told}), so its ids mean other words; a target "
            f"with vocab_size={sizes[0]} would work"
        )


def other_fields(ours: Any, theirs: Any, without: tuple[str, ...] = BOOKKEEPING) -> dict[str, tuple[Any, Any]]:
    """{entry: (ours, theirs)} of the entries that differ."""
    a, b = ours.to_dict(), theirs.to_dict()
    names = [name for name in {**a, **b} if name not in without and a.get(name) != b.get(name)]
    return {name: (a.get(name), b.get(name)) for name in names}
