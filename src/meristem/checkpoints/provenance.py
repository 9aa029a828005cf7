"""`ms.provenance`: which entries of a model are old, copied or fresh, from the growth itself or from the
`meristem.json` next to its weights.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from meristem.errors import MeristemError
from meristem.growth import Growth
from meristem.growth.fusion.fusion import Fusion
from meristem.growth.provenance import Provenance

RECORD = "meristem.json"


def provenance(of: Growth | Fusion | nn.Module | str | Path) -> Provenance:
    """Tell which entries of a model are old, copied or fresh, as recorded by the growth that made it.

        masks = ms.provenance("OUT").masks("model.layers.0.mlp.up_proj.weight")
        masks["old"], masks["copied"], masks["fresh"]

    If a model was grown several times, it tells what the last growth added. `.before` tells the same about
    the growth before it, and `.since_first` tells what all of them added.

    Args:
        of: a growth or a fusion, the directory to which one was written, or a model that was loaded from such
            a directory.

    Raises:
        MeristemError: if nothing is recorded there, or if the record belongs to another model.
    """
    if isinstance(of, Growth | Fusion):
        return of.provenance
    if not isinstance(of, nn.Module):
        return read_provenance(Path(of))
    place = getattr(of, "name_or_path", None)
    if not place or not Path(place).is_dir():
        raise MeristemError(
            f"this {type(of).__name__} does not record the directory that it was loaded from; pass that directory, or the Growth that "
            "made it"
        )
    found = read_provenance(Path(place))
    found.check(of)
    return found


def read_provenance(directory: Path) -> Provenance:
    """The provenance in the record of a model directory. Raises MeristemError if there is none, or if it
    cannot be read.
    """
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
    """That part of the record, as it is written, or None if there is none. Raises MeristemError for a broken
    file.
    """
    file = directory / RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise MeristemError(f"{file} cannot be read: {error}") from error
    return record.get("provenance") if isinstance(record, dict) else None


def provenance_before(directory: Path, model: nn.Module) -> Provenance | None:
    """The recorded provenance of a network that is about to grow. None if there is none, if it belongs to
    another network or if it cannot be read, because a growth does not need it.
    """
    try:
        recorded = recorded_provenance(directory)
        found = Provenance.of_dict(recorded) if recorded is not None else None
        if found is not None:
            found.check(model)
    except MeristemError as error:
        warnings.warn(f"what this model's own growth has added is not carried along: {error}", stacklevel=2)
        return None
    return found


def shares(directory: Path) -> list[str]:
    """One sentence for each recorded growth about the share of entries of each kind, the last growth
    first.
    """
    recorded, told = recorded_provenance(directory), []
    while isinstance(recorded, dict):
        counts = recorded.get("entries")
        if not isinstance(counts, dict) or not all(isinstance(n, int) for n in counts.values()):
            break
        total = sum(counts.values())
        if not total:
            break
        kinds = ", ".join(f"{kind} {count / total:.1%} ({count:,})" for kind, count in counts.items())
        told.append(f"{'the growth before it' if told else 'provenance'}: {kinds}")
        recorded = recorded.get("before")
    return told
