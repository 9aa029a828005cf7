"""The message for a name that is neither a directory here nor a model on the hub."""

from __future__ import annotations

import difflib
from pathlib import Path

from meristem.errors import first_line


def nothing_here(name: str | Path) -> str:
    """ "no such directory", and a directory that may be meant."""
    close = _close_by(Path(name))
    return f"no such directory (did you mean {close}?)" if close else "no such directory here"


def why_not_fetched(name: str, error: Exception) -> str:
    """What an error of the hub's client means, and what to do about it."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return f"on the hub it is gated: accept its terms at https://huggingface.co/{name} and log in (hf auth login)"
    if isinstance(error, hub.RepositoryNotFoundError):
        return "the hub has no public model of that name (to a private one, log in: hf auth login)"
    if isinstance(error, hub.IncompleteSnapshotError):
        return "the hub's cache holds only a part of it; fetch it again with access to the hub"
    if constants.HF_HUB_OFFLINE:
        return "the hub's cache has no model of that name, and HF_HUB_OFFLINE forbids fetching it"
    return f"it could not be fetched from the hub: {first_line(error).removeprefix('Got: ')}"


def _close_by(path: Path) -> Path | None:
    """A directory of nearly the same name: each missing part is replaced by its nearest, or it is one of that
    name a level below.
    """
    place = Path(path.anchor)
    parts = path.parts[1:] if path.anchor else path.parts
    for number, part in enumerate(parts):
        if part == ".." or (place / part).is_dir():
            place /= part
            continue
        beside = _directories(place)
        close = difflib.get_close_matches(part, beside, n=1)
        rest = Path(*parts[number:])
        below = [place / name / rest for name in beside if (place / name / rest).is_dir()]
        if not close and not below:
            return None
        if not close:
            return below[0]
        place /= close[0]
    return place


def _directories(place: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in place.iterdir() if entry.is_dir())
    except (OSError, ValueError):
        return []
