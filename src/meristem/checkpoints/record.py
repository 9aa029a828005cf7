"""What `meristem.json` says about a grown model: how it was made, from what, and the proof."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from meristem.growth import Growth


def source_record(source: str) -> dict[str, Any]:
    """The source's name and the SHA-256 of its config and weight files (None for a hub name)."""
    path = Path(source)
    if not path.is_dir():
        return {"name": source, "sha256": None}
    digest = hashlib.sha256()
    for file in sorted([path / "config.json", *path.glob("*.safetensors")]):
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return {"name": source, "sha256": digest.hexdigest()}


def growth_record(growth: Growth, source: str) -> dict[str, Any]:
    """The whole record."""
    from meristem import __version__

    return {
        "meristem_version": __version__,
        "methods": list(growth.methods),
        "source": source_record(source),
        "certificate": growth.certificate.as_dict() if growth.certificate else None,
    }
