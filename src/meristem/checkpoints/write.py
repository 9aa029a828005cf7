"""Writing a model directory: built beside its place, checked, then renamed into it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from meristem.checkpoints.open import TOKENIZER_FILES
from meristem.errors import MeristemError


@contextlib.contextmanager
def atomic_directory(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill; it appears as `out` only when the block ends well. A kill at any moment leaves `out` as it
    was (and perhaps a hidden `.NAME.partial`, which the next run clears).

    Raises:
        MeristemError: if `out` exists and `overwrite` is not set, or the disk cannot take it.
    """
    if out.exists() and not overwrite:
        raise MeristemError(f"{out} exists; choose another place or pass --overwrite")
    partial = out.parent / f".{out.name}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        _sync(partial)
        if out.exists():
            old = out.parent / f".{out.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            os.rename(out, old)
            os.rename(partial, out)
            shutil.rmtree(old)
        else:
            os.rename(partial, out)
    except OSError as error:
        raise MeristemError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON by atomic rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def write_model(
    model: Any,
    out: Path,
    record: dict[str, Any],
    tokenizer_from: Path | None = None,
    overwrite: bool = False,
    more: Callable[[Path], None] | None = None,
) -> None:
    """Save a stock transformers directory: config, safetensors, tokenizer, model card and `meristem.json`.

    Args:
        record: what `meristem.json` says (method, options, source, certificate).
        tokenizer_from: a model directory whose tokenizer files are copied verbatim.
        more: writes further files into the directory before it appears.

    Raises:
        MeristemError: if `out` exists, the disk is full, or stock transformers does not read back what was written.
    """
    from meristem.checkpoints.card import model_card

    with atomic_directory(out, overwrite) as partial:
        model.save_pretrained(partial, max_shard_size="5GB")
        for name in TOKENIZER_FILES if tokenizer_from is not None else ():
            assert tokenizer_from is not None
            if (tokenizer_from / name).is_file():
                shutil.copyfile(tokenizer_from / name, partial / name)
        write_json(partial / "meristem.json", record)
        (partial / "README.md").write_text(model_card(record))
        if more is not None:
            more(partial)
        _read_back(type(model), partial)


def _read_back(model_class: Any, path: Path) -> None:
    _, info = model_class.from_pretrained(path, output_loading_info=True, dtype="auto", use_safetensors=True)
    wrong = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise MeristemError(f"stock transformers does not read back what was written: {wrong[0]}")


def _sync(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
