"""The certificate that was written with a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from meristem.certificates import Certificate
from meristem.checkpoints.source import hub_name
from meristem.errors import MeristemError, first_line

RECORD = "meristem.json"


def load_certificate(source: str | Path) -> Certificate | None:
    """Read the certificate of a grown or fused model from its `meristem.json`. Nothing else of the model is
    read.

    Args:
        source: a directory, or a hub name (owner/name, or owner/name@revision).

    Returns:
        The certificate, or None if the record says that nothing was measured.

    Raises:
        MeristemError: if there is no record, or if Meristem did not write it.
    """
    file = _record_of(str(source))
    try:
        content = json.loads(file.read_text())
        proof = content["certificate"]
        return None if proof is None else _certificate(proof)
    except OSError as error:
        raise MeristemError(f"{source} holds no {RECORD}: Meristem did not write this directory") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MeristemError(f"{file} is not a record that Meristem wrote: {first_line(error)}") from error


def _certificate(proof: dict[str, Any]) -> Certificate:
    names = {f.name for f in dataclasses.fields(Certificate)}
    return Certificate(**{name: value for name, value in proof.items() if name in names})


def _record_of(source: str) -> Path:
    """The file of the record. It is fetched from the hub if it is not in a directory."""
    if Path(source).exists():
        return Path(source) / RECORD
    name, revision = hub_name(source)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, RECORD, revision=revision))
    except Exception as error:
        raise MeristemError(f"{source}: no {RECORD} can be fetched from the hub: {first_line(error)}") from error
