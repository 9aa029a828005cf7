"""The content of `meristem.json` for a grown model: how it was made, from what, and the proof."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meristem.certificates import Certificate
from meristem.checkpoints.directory import write_json
from meristem.checkpoints.provenance import provenance_before, recorded_provenance
from meristem.checkpoints.source import Source
from meristem.checkpoints.source_hash import source_record
from meristem.errors import MeristemError
from meristem.growth import METHODS, Growth
from meristem.growth.fusion.fusion import Fusion
from meristem.growth.methods.method import Method
from meristem.growth.provenance import Provenance
from meristem.incubation import Incubation


def copy_record(source: str | Source) -> dict[str, Any]:
    """The record of a model that was copied unchanged."""
    return _record([{"method": "copy"}], {"source": source_record(source)}, None)


def trained_record() -> dict[str, Any]:
    """The record of a model that was trained since."""
    return _record([{"method": "train"}], {}, None)


def keep_provenance(directory: Path, provenance: Provenance) -> None:
    """Record what a growth added, next to a model that was trained after it."""
    write_json(directory / "meristem.json", {**trained_record(), "provenance": provenance.as_dict()})


def growth_record(
    growth: Growth, source: str | Source, drop: Sequence[str] = (), known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The whole record. Layers are counted from 0. If the record of the source describes an earlier growth,
    it is kept within the provenance as `before`.

    Args:
        growth: the growth.
        source: what it was made from.
        drop: what was left out of the source, if anything.
        known: the `source_record` of the source, if it was already computed.
    """
    added = {"new_layers": growth.new_layers} if growth.new_layers else {}
    origin = {"source": known or source_record(source), **_dropped(drop), **added}
    place = Path(source) if isinstance(source, str) else source.path
    found = growth.provenance.after(provenance_before(place, growth.source))
    return {**_record(growth.methods, origin, growth.certificate), "provenance": found.as_dict()}


def fusion_record(fusion: Fusion, sources: Sequence[str | Source], drop: Sequence[str] = ()) -> dict[str, Any]:
    """The record of a fused model: all its parents, its distance from their mean, and whether it promised to
    be that mean (`exact`).
    """
    origin = {"sources": [source_record(source) for source in sources], "exact": fusion.exact, **_dropped(drop)}
    return {**_record(fusion.methods, origin, fusion.certificate), "provenance": fusion.provenance.as_dict()}


def average_record(sources: Sequence[str | Source], parts: Sequence[float]) -> dict[str, Any]:
    """The record of a mean of checkpoints, with the weight of each. What an earlier growth added to them is
    also what it added to their mean.
    """
    own = _record(
        [{"method": "average", "weights": list(parts)}], {"sources": [source_record(s) for s in sources]}, None
    )
    recorded = [recorded_provenance(source.path if isinstance(source, Source) else Path(source)) for source in sources]
    alike = recorded[0] is not None and all(one == recorded[0] for one in recorded)
    return {**own, "provenance": recorded[0]} if alike else own


def assembly_record(incubations: Sequence[Incubation], sources: Sequence[str]) -> dict[str, Any]:
    """The record of a network assembled from incubated modules."""
    common = {key: value for key, value in incubations[0].record().items() if key != "module"}
    origin = {"sources": [source_record(source) for source in sources]}
    return _record([{"method": "deep_incubation", **common}], origin, None)


def recorded_methods(directory: Path) -> list[Method]:
    """The methods that made the model in a directory, as its `meristem.json` names them.

    Raises:
        MeristemError: if there is no record, or if it names no known growth.
    """
    file = directory / "meristem.json"
    try:
        named = json.loads(file.read_text())["methods"]
        if others := [entry["method"] for entry in named if entry["method"] not in METHODS]:
            raise MeristemError(
                f"{directory} was made by {others[0]}, of which there is no sampled proof; leave out --sample"
            )
        return [METHODS[entry.pop("method")](**entry) for entry in named]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MeristemError(
            f"{file} does not record how {directory} was grown, and a sampled proof needs that ({error!r}); leave out --sample"
        ) from error


def _dropped(drop: Sequence[str]) -> dict[str, Any]:
    return {"dropped": list(drop)} if drop else {}


def _record(
    methods: Sequence[dict[str, Any]], origin: dict[str, Any], certificate: Certificate | None
) -> dict[str, Any]:
    from meristem import __version__

    proof = certificate.as_dict() if certificate else None
    return {"meristem_version": __version__, "methods": list(methods), **origin, "certificate": proof}
