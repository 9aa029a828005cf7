"""From what a user names (a directory, a model of the hub or an address in an object store) to files on the
local disk. Nothing is run, and nothing is trusted.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meristem.checkpoints.object_store import fetch, is_address
from meristem.checkpoints.other_formats import ADAPTER, no_model_here
from meristem.errors import MeristemError, first_line
from meristem.nowhere import nothing_here, why_not_fetched

HUB_NAME = re.compile(r"^([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?$")  # and a branch, a tag or a commit
COMMIT = re.compile(r"^[0-9a-f]{40}$")
OTHER_WEIGHTS = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.onnx*",
    "*.gguf",
    "*.ot",
    "*/*.safetensors",
)
RUN_STATE = ("*.pt", "*.pth")  # a Trainer's; of the hub they are weights
QUANTISED = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class Source:
    """A model directory. `name` is the name that the user gave. `revision` is its commit on the hub, or None
    for a directory.
    """

    name: str
    path: Path
    revision: str | None = None

    def __str__(self) -> str:
        return self.name


def find_source(source: str | Source, trust_remote_code: bool = False) -> Source:
    """The directory that a user names. For a hub name (owner/name, or owner/name@revision) or an address
    (`s3://...`) it is the cache, which is filled if necessary. The config is checked first.

    Raises:
        MeristemError: if nothing has this name, if it is not a model that can be read (`read_config`), or if
            the hub cannot be reached.
    """
    if isinstance(source, Source):
        return source
    if not str(source).strip():
        raise MeristemError("the name of a model is empty; name a model directory, or a model of the hub (owner/name)")
    code = () if trust_remote_code else ("*.py",)
    if is_address(source):
        unwanted = (*(pattern for pattern in OTHER_WEIGHTS if pattern not in RUN_STATE), *code)
        return Source(
            source, fetch(source, unwanted, lambda path: read_config(Source(source, path), trust_remote_code))
        )
    path = Path(source)
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise MeristemError(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if exists:
        read_config(Source(source, path), trust_remote_code)
        return Source(source, path)
    name, wanted = hub_name(source)
    if wanted and Path(name).is_dir():
        raise MeristemError(f"{source}: {name} is a directory, and only hub models have revisions")
    described = _snapshot(name, allow_patterns=["config.json", ADAPTER], **({"revision": wanted} if wanted else {}))
    revision = described.name if COMMIT.match(described.name) else wanted
    read_config(Source(name, described, revision), trust_remote_code)
    return Source(name, _snapshot(name, ignore_patterns=[*OTHER_WEIGHTS, *code], revision=revision), revision)


def states_of_files(directory: Path) -> dict[str, tuple[int, int]]:
    """{name: (size, time of its last change in ns)} of the files of a directory. Broken and circular links
    are left out.
    """
    found = {}
    for file in sorted(directory.iterdir()):
        with contextlib.suppress(OSError):
            state = file.stat()
            found[file.name] = (state.st_size, state.st_mtime_ns)
    return found


def unchanged(source: Source) -> Callable[[], None]:
    """A function that raises MeristemError if config or weights of the source have changed since this
    call.
    """

    def states() -> dict[str, tuple[int, int]]:
        found = states_of_files(source.path) if source.path.is_dir() else {}
        return {
            name: state for name, state in found.items() if name.endswith((".safetensors", ".distcp", "config.json"))
        }

    before = states()

    def check() -> None:
        after = states()
        changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        if changed:
            raise MeristemError(
                f"{source}: {changed[0]} changed while it was read, so the result would mix two versions; run the command again "
                "when no process writes there"
            )

    return check


def hub_name(source: str) -> tuple[str, str | None]:
    """The hub name and the revision of owner/name or owner/name@revision.

    Raises:
        MeristemError: if it is not such a name.
    """
    named = HUB_NAME.match(source)
    if not named or source.startswith("."):
        raise MeristemError(
            f"{source}: {nothing_here(source)}, and it is not a hub name (owner/name, or owner/name@revision)"
        )
    return named[1], named[2]


def _snapshot(name: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **options))
    except Exception as error:
        raise MeristemError(f"{name}: {nothing_here(name)}, and {why_not_fetched(name, error)}") from error


def read_config(source: Source, trust_remote_code: bool = False) -> dict[str, Any]:
    """The entries of its config.json, as transformers reads them.

    Raises:
        MeristemError: if there is no config.json or it cannot be read; if it is an adapter or holds quantised
            weights, which have no units to grow; or if it asks for code that is not transformers' own, and
            `trust_remote_code` is not set.
    """
    entries = _entries(source)
    if (source.path / ADAPTER).exists():
        raise MeristemError(
            f"{source} holds a PEFT adapter ({ADAPTER}); merge it into its base model first: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(DIRECTORY)"
        )
    for path, value in _everywhere(entries):
        if path.rpartition(".")[-1] in QUANTISED and value:
            raise MeristemError(f"{source} is quantised ({path} in config.json); use the original weights")
    if not trust_remote_code:
        for path, value in _everywhere(entries):
            key = path.rpartition(".")[-1]
            code = key == "auto_map" and value and not (path == "auto_map" and _made_here(entries))
            kernel = key.endswith("_implementation") and any("/" in str(v) for _, v in _everywhere({key: value}))
            if code or kernel:
                brings = "contains its own code" if code else "needs code from the hub"
                raise MeristemError(f"{source} {brings} ({path}: {value}); pass --trust-remote-code to run it")
    return entries


def _made_here(entries: dict[str, Any]) -> bool:
    """Whether Meristem makes its class, whatever code the config names."""
    from meristem.growth.structure.grouped_norms import is_grouped  # loads torch

    return is_grouped(entries.get("model_type"))


def _entries(source: Source) -> dict[str, Any]:
    config = source.path / "config.json"
    try:
        if not source.path.is_dir() or not config.is_file():
            raise no_model_here(source.path)
        entries = json.loads(config.read_text())
    except OSError as error:
        raise MeristemError(f"{error.filename or config} cannot be read: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MeristemError(f"{config} is not valid JSON: {error}") from error
    if not isinstance(entries, dict):
        raise MeristemError(f"{config} holds a {type(entries).__name__}, not an object")
    kind, classes = entries.get("model_type", ""), entries.get("architectures") or []
    if not isinstance(kind, str):
        raise MeristemError(
            f'{config}: model_type is {kind!r}, and should be the name of a kind of model, such as "llama"'
        )
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise MeristemError(
            f'{config}: architectures is {classes!r}, and should be a list of names: ["LlamaForCausalLM"]'
        )
    if "configuration_files" in entries:  # transformers reads another file for some of its versions
        from transformers import PretrainedConfig

        try:
            entries, _ = PretrainedConfig.get_config_dict(source.path)
        except Exception as error:
            raise MeristemError(
                f"{config} names configuration files that cannot be read: {first_line(error)}"
            ) from error
    return entries


def _everywhere(entries: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every entry at any depth."""
    items = entries.items() if isinstance(entries, dict) else enumerate(entries) if isinstance(entries, list) else ()
    for key, value in items:
        below = f"{path}.{key}" if path else str(key)
        yield below, value
        yield from _everywhere(value, below)
