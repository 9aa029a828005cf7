"""Opening a model directory or hub name: safetensors only, no remote code unless trusted, and errors that teach."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from meristem.checkpoints.stored import StoredTensors
from meristem.errors import MeristemError, first_line
from meristem.growth.grouped_norms import is_grouped, known_class

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def open_config(source: str, trust_remote_code: bool = False) -> Any:
    """The config of a model directory or hub name.

    Raises:
        MeristemError: if it is neither, if its config cannot be read, if its weights are quantised (they have no units to
            grow), or if it wants to run code of its own and `trust_remote_code` is not set.
    """
    from transformers import AutoConfig

    path = Path(source)
    if path.exists():
        entries = _read_local_config(path)
    elif not HUB_NAME.match(source) or source.startswith("."):
        raise MeristemError(f"{source}: no such directory, and no hub name either (owner/name)")
    else:
        entries = {}
    if is_grouped(entries.get("model_type")):  # a class that Meristem knows: the file beside it is not run
        return _grouped(entries, source)
    if "auto_map" in entries and not trust_remote_code:
        raise MeristemError(f"{source} brings its own code ({entries['auto_map']}); pass --trust-remote-code to run it")
    if entries.get("quantization_config"):
        raise MeristemError(f"{source} is quantised; use the weights that it was made from")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise MeristemError(
            f"{source}: its config is not one that transformers understands: {first_line(error)}"
        ) from error


def _grouped(entries: dict[str, Any], source: str) -> Any:
    try:
        config = known_class(entries).config_class(**entries)  # type: ignore[attr-defined]
    except Exception as error:
        raise MeristemError(f"{source}: its config is not one of grouped norms: {first_line(error)}") from error
    config.name_or_path = source
    return config


def _read_local_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise MeristemError(f"{path} is a file; a model is a directory with config.json and safetensors files")
    config = path / "config.json"
    if not config.exists():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
        raise MeristemError(f"{path} is not a model directory: it has no config.json (found: {found})")
    try:
        entries = json.loads(config.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MeristemError(f"{config} is not valid JSON: {error}") from error
    if not isinstance(entries, dict):
        raise MeristemError(f"{config} holds a {type(entries).__name__}, not an object")
    return entries


def model_class_of(config: Any, source: str, trust_remote_code: bool = False) -> type:
    """The class that the checkpoint names in `architectures`, from transformers itself."""
    import transformers

    names = config.architectures
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise MeristemError(f"{source}: config.json names no architecture, so its model class is unknown")
    if is_grouped(config.model_type):
        return known_class({"architectures": names})
    if trust_remote_code and getattr(config, "auto_map", None):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        reference = next((r for r in config.auto_map.values() if r.split(".")[-1] == names[0]), None)
        if reference:
            return get_class_from_dynamic_module(reference, source)
    found = getattr(transformers, names[0], None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise MeristemError(f"{source}: transformers {transformers.__version__} has no model class {names[0]}")
    return found


def open_model(source: str, trust_remote_code: bool = False) -> Any:
    """The model with its own weights and dtype, in evaluation mode.

    Raises:
        MeristemError: for anything that is not a whole model: no config, no safetensors, a truncated file, weights that
            the architecture misses or that have other shapes.
    """
    config = open_config(source, trust_remote_code)
    model_class = model_class_of(config, source, trust_remote_code)
    path = Path(source)
    if path.is_dir():
        StoredTensors(path)
    try:
        model, info = model_class.from_pretrained(  # type: ignore[attr-defined]
            source, config=config, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        raise MeristemError(f"{source}: its weights cannot be loaded: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise missing_tensors(source, missing, model_class)
    return model.eval()


def missing_tensors(source: str, missing: list[str], model_class: type) -> MeristemError:
    """The error about tensors that the architecture has and the files have not."""
    return MeristemError(
        f"{source}: {len(missing)} tensors of {model_class.__name__} are missing from its files, such as {missing[0]}; "
        "config.json and the weights do not belong together"
    )


def local_directory(source: str) -> Path:
    """The directory itself, or the hub's cache (filled if need be) for a hub name.

    Raises:
        MeristemError: if the hub has none or cannot be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json", *TOKENIZER_FILES]))
    except Exception as error:
        raise MeristemError(f"{source}: cannot be fetched from the hub: {first_line(error)}") from error
