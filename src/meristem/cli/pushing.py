"""`--push-to-hub`: upload the result if the user requests it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meristem.cli.output import note
from meristem.errors import MeristemError


def check_push(where: tuple[str | None, str | None]) -> None:
    """Stop before any work if the upload could not work.

    Raises:
        MeristemError: if the name of the repository is invalid, if the token is missing or refused, or if a
            branch is given without a repository.
    """
    repository, revision = where
    if repository is None:
        if revision is not None:
            raise MeristemError("--revision names the branch of --push-to-hub REPO; give both")
        return
    from meristem.checkpoints.hub import check_access

    check_access(repository)


def push(out: Path, where: tuple[str | None, str | None]) -> dict[str, Any] | None:
    """Upload a directory that was written. Returns None if no upload was requested."""
    repository, revision = where
    if repository is None:
        return None
    from meristem.checkpoints.hub import push_to_hub
    from meristem.cli.progress import step

    with step(f"uploading {out} to {repository}"):
        address = push_to_hub(out, repository, revision)
    note(f"uploaded: {address}")
    return {"repository": repository, "revision": revision or "main", "commit": address}
