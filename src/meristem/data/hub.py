"""Data sets of the Hugging Face hub, and folders that its library reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meristem.errors import MeristemError, first_line

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text", ".arrow": "arrow"}
HELD_OUT = ("test", "validation", "valid")


def load_data_set(
    source: str, columns: Sequence[str], *, split: str | None = None, builder: str | None = None, stream: bool = False
) -> Any:
    """One split of a data set, or all splits by their names.

    Args:
        source: a name ("owner/name" or "name:config"), a file or folder of a data set, or a folder that
            `builder` reads.
        columns: the columns that the data set needs to have.
        split: the split. All of them by default.
        builder: the builder of the library for a folder.
        stream: read the data set as a stream.

    Raises:
        MeristemError: if the library or the data set does not exist, or if a split lacks one of the columns.
    """
    try:
        import datasets
    except ImportError as error:
        raise MeristemError(f"{source}: reading it needs: pip install 'meristem-nn[data]'") from error
    try:
        if builder and Path(source).is_dir():
            loaded: Any = datasets.load_dataset(builder, data_dir=source, split=split)
        elif Path(source).is_file():
            kind, file = BUILDERS.get(Path(source).suffix.lower(), "text"), str(Path(source).absolute())
            loaded = datasets.load_dataset(kind, data_files=file, split=split, streaming=stream)
        else:
            name, _, config = source.partition(":")
            more: dict[str, Any] = {"streaming": True} if stream else {}
            loaded = datasets.load_dataset(name, config or None, split=split, **more)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except Exception as error:
        if said := wrong_row(Path(source)):
            raise MeristemError(said) from error
        here = "" if Path(source).exists() else " (no file or folder here has this name)"
        raise MeristemError(f"data set {source!r} cannot be loaded: {first_line(error)}{here}") from error
    for part in [loaded] if split else loaded.values():
        found = part.column_names or columns  # a stream may not know its columns before it is read
        missing = next((column for column in columns if column not in found), None)
        if missing is not None:
            raise MeristemError(f"data set {source!r} has no column {missing!r}; it has {', '.join(found)}")
    return loaded


def wrong_row(file: Path) -> str | None:
    """One sentence for the first line of a .jsonl file that is no JSON object. None if there is none."""
    if file.suffix.lower() != ".jsonl" or not file.is_file():
        return None
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if (line := line.strip()) and not isinstance(json.loads(line), dict):
                    return f"{file}: line {number} is not a JSON object but {line[:40]}"
            except ValueError as error:
                return f"{file}: line {number} is not valid JSON: {error}"
    return None


def version_of(loaded: Any) -> str | None:
    """What identifies the version of a data set: the fingerprint of its library or, for a stream, the files
    that it reads. None if nothing does.
    """
    own = getattr(loaded, "_fingerprint", None)
    if own:
        return str(own)
    sums = getattr(getattr(loaded, "info", None), "download_checksums", None)
    return json.dumps(sums, sort_keys=True) if sums else None


def split_of(loaded: Any, source: str) -> tuple[Any, Any]:
    """The rows for training and those that are held out. Raises MeristemError if there are no such splits."""
    held = next((split for split in HELD_OUT if split in loaded), None)
    if "train" not in loaded or held is None:
        raise MeristemError(
            f"data set {source!r} has the splits {', '.join(map(str, loaded))}; train is needed, and test or validation"
        )
    return loaded["train"], loaded[held]
