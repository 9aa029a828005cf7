"""Which files of a directory Meristem or `save_pretrained` wrote. They are known by what is in them: a name
is anybody's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = ".meristem-files"  # in every directory written here: {path: fingerprint} of what may be replaced with it
BLOCK, BLOCKS = 1 << 16, 64  # of a file that is larger than all of them, these many bytes at these many places count
STOCK_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
SPECIAL = {
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
}


def write_manifest(directory: Path) -> None:
    """Say what is in a directory that is complete."""
    said = {path: fingerprint(directory / path) for path in files_below(directory) if path != MANIFEST}
    (directory / MANIFEST).write_text(json.dumps(said, indent=0) + "\n")


def begin_manifest(directory: Path) -> None:
    """Mark a directory that is being filled as one of Meristem's."""
    (directory / MANIFEST).write_text("{}\n")


TYPED = re.compile(
    r"chat_template\.jinja|additional_chat_templates/.*|vocab\.(txt|json)|merges\.txt|.*\.model|README\.md"
)
# `save_pretrained` writes such files, and people type them; their content does not tell


def is_marked(directory: Path) -> bool:
    """Whether Meristem made this directory."""
    return (directory / MANIFEST).is_file()


def remove(directory: Path) -> None:
    """Remove a directory as far as possible. What a kill leaves is still marked as Meristem's."""
    with contextlib.suppress(OSError):
        begin_manifest(directory)
        for name in os.listdir(directory):
            if (directory / name).is_dir() and not (directory / name).is_symlink():
                shutil.rmtree(directory / name, ignore_errors=True)
            elif name != MANIFEST:
                (directory / name).unlink()
    shutil.rmtree(directory, ignore_errors=True)


def foreign(directory: Path) -> str | None:
    """The first of its files that neither Meristem nor `save_pretrained` wrote, said for a sentence; None if
    there is none.

    Files that `save_pretrained` writes are known by their content. Weights are its own next to such a config.
    What people write by hand (cards, vocabularies, templates) is Meristem's own only as it wrote it.

    Raises:
        OSError: if a file cannot be read.
    """
    manifest = _manifest(directory / MANIFEST)
    for path in files_below(directory):
        if path == MANIFEST or _as_written(directory, path, manifest):
            continue
        if path in manifest or not _saved_by_transformers(directory, path):
            since = ", which was changed since Meristem wrote it" if path in manifest else ""
            typed = ", which Meristem has no record of and which may be yours" if TYPED.fullmatch(path) else ""
            return f"{path}{since or typed or ', which neither Meristem nor save_pretrained wrote'}"
    return None


def is_own(directory: Path, path: str) -> bool:
    """Whether a file of a directory is as Meristem wrote it."""
    return _as_written(directory, path, _manifest(directory / MANIFEST))


def files_below(directory: Path) -> Iterator[str]:
    """Paths in it of everything that is no directory; links to directories are not followed."""
    for name in sorted(os.listdir(directory)):
        path = directory / name
        if path.is_dir() and not path.is_symlink():
            yield from (f"{name}/{below}" for below in files_below(path))
        else:
            yield name


def fingerprint(file: Path) -> str | None:
    """SHA-256 of its size and content, of a large file at places spread evenly over it; None for what is no
    file.
    """
    try:
        found = file.stat()
    except FileNotFoundError:  # a link to nothing
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    digest = hashlib.sha256(str(found.st_size).encode())
    last = found.st_size - BLOCK
    places: Iterable[int] = range(0, found.st_size, BLOCK)
    if found.st_size > BLOCK * BLOCKS:
        places = (last * number // (BLOCKS - 1) for number in range(BLOCKS))
    with open(file, "rb") as stream:
        for place in places:
            stream.seek(place)
            digest.update(stream.read(BLOCK))
    return digest.hexdigest()


def _manifest(file: Path) -> Mapping[str, Any]:
    said = _json(file)
    return said if isinstance(said, dict) else {}


def _as_written(directory: Path, path: str, manifest: Mapping[str, Any]) -> bool:
    return path in manifest and manifest[path] == fingerprint(directory / path)


def _saved_by_transformers(directory: Path, path: str) -> bool:
    """Whether a file's content is what `save_pretrained` of a model, a tokenizer or a processor writes under
    its name.
    """
    if STOCK_WEIGHTS.fullmatch(path):
        return _saved_by_transformers(directory, "config.json")
    if path == "tokenizer.json" and not _saved_by_transformers(directory, "tokenizer_config.json"):
        return False
    if path == "modeling_grouped.py":
        return (directory / path).read_text() == _own_code().read_text()
    looks = CONTENT.get(path)
    said = _json(directory / path) if looks else None
    return looks is not None and isinstance(said, dict) and looks(said)


def _own_code() -> Path:
    return Path(__file__).parents[1] / "growth" / "structure" / "modeling_grouped.py"


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (ValueError, RecursionError):
        return None


def _has(*texts: str) -> Callable[[dict[str, Any]], bool]:
    return lambda said: all(isinstance(said.get(text), str) for text in texts)


def _of_a_processor(said: dict[str, Any]) -> bool:
    kinds = ("processor_class", "image_processor_type", "feature_extractor_type", "video_processor_type")
    return any(isinstance(said.get(kind), str) for kind in kinds)


CONTENT: Mapping[str, Callable[[dict[str, Any]], bool]] = {
    "config.json": _has("model_type", "transformers_version"),
    "generation_config.json": _has("transformers_version"),
    "model.safetensors.index.json": lambda said: isinstance(said.get("weight_map"), dict),
    "tokenizer_config.json": _has("tokenizer_class"),
    "tokenizer.json": lambda said: isinstance(said.get("model"), dict),
    "special_tokens_map.json": lambda said: said.keys() <= SPECIAL,
    "preprocessor_config.json": _of_a_processor,
    "video_preprocessor_config.json": _of_a_processor,
    "processor_config.json": _of_a_processor,
    "meristem.json": _has("meristem_version"),
}  # fmt: skip
