"""`ms.provenance`: what of a model is old, copied or fresh, from the growth itself or from the `meristem.json` beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from meristem.checkpoints.directory import write_json
from meristem.checkpoints.record import trained_record
from meristem.errors import MeristemError
from meristem.growth import Growth
from meristem.growth.provenance import Provenance

RECORD = "meristem.json"


def provenance(of: Growth | nn.Module | str | Path) -> Provenance:
    """Which entries of a model are old, copied or fresh, as the growth that made it has recorded.

        masks = ms.provenance("OUT").masks("model.layers.0.mlp.up_proj.weight")  # {"old": ..., "copied": ..., "fresh": ...}

    Args:
        of: a growth, the directory that one was written to, or a model that was loaded from such a directory.

    Raises:
        MeristemError: if nothing there records it, or what is recorded belongs to another model.
    """
    if isinstance(of, Growth):
        return of.provenance
    if not isinstance(of, nn.Module):
        return read_provenance(Path(of))
    place = getattr(of, "name_or_path", None)
    if not place or not Path(place).is_dir():
        raise MeristemError(
            f"this {type(of).__name__} does not say which directory it was loaded from; pass that directory, or the Growth that "
            "made it"
        )
    found = read_provenance(Path(place))
    found.check(of)
    return found


def read_provenance(directory: Path) -> Provenance:
    """What the record in a model directory says. Raises MeristemError if it says nothing, or cannot be read."""
    recorded = recorded_provenance(directory)
    if recorded is None:
        raise MeristemError(
            f"{directory / RECORD} records no provenance; pass a directory that `meristem grow` or a recipe's grow node has written"
        )
    try:
        return Provenance.of_dict(recorded)
    except MeristemError as error:
        raise MeristemError(f"{directory / RECORD}: {error}") from error


def recorded_provenance(directory: Path) -> dict[str, Any] | None:
    """The record's own part, as it is written; None where there is none. Raises MeristemError for a broken file."""
    file = directory / RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise MeristemError(f"{file} cannot be read: {error}") from error
    return record.get("provenance") if isinstance(record, dict) else None


def shares(directory: Path) -> str | None:
    """One sentence about the share of entries of each kind, if a growth has recorded it."""
    recorded = recorded_provenance(directory)
    counts = recorded.get("entries") if isinstance(recorded, dict) else None
    if not isinstance(counts, dict) or not all(isinstance(n, int) for n in counts.values()) or not sum(counts.values()):
        return None
    total = sum(counts.values())
    told = ", ".join(f"{kind} {count / total:.1%} ({count:,})" for kind, count in counts.items())
    return f"provenance: {told}"


def keep_provenance(directory: Path, provenance: Provenance) -> None:
    """Record it beside a model that was trained after the growth."""
    write_json(directory / RECORD, {**trained_record(), "provenance": provenance.as_dict()})
