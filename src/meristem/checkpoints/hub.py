"""Upload a model directory to the Hugging Face hub, with the token from the standard place (`hf auth login`
or HF_TOKEN).
"""

from __future__ import annotations

from pathlib import Path

from meristem.errors import MeristemError, first_line


def check_access(repository: str) -> None:
    """Check whether an upload to this repository can work, as far as that is known in advance.

    Raises:
        MeristemError: if no repository can have this name, if there is no token, or if the hub refuses the
            token.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise MeristemError(
            f"{repository!r} is not the name of a repository (owner/name): {first_line(error)}"
        ) from error
    if get_token() is None:
        raise MeristemError(f"an upload to {repository} needs a token: `hf auth login`, or the environment's HF_TOKEN")
    try:
        HfApi().whoami()
    except Exception as error:
        raise MeristemError(f"the hub does not accept the token for {repository}: {first_line(error)}") from error


def push_to_hub(directory: str | Path, repository: str, revision: str | None = None) -> str:
    """Upload a model directory that Meristem wrote. The repository and the branch are made if they do not
    exist.

    The token comes from the standard place (`hf auth login`, or the environment variable HF_TOKEN).

    Args:
        directory: the model directory.
        repository: owner/name.
        revision: the branch. `main` by default.

    Returns:
        The address of the commit.

    Raises:
        MeristemError: if the directory holds no config.json, or if the hub refuses the upload.
    """
    from huggingface_hub import HfApi

    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise MeristemError(f"{directory} is not a model directory: it holds no config.json")
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            revision=revision,
            commit_message="Upload a model made by Meristem",
        )
    except Exception as error:
        raise MeristemError(
            f"{directory} is written, and could not be uploaded to {repository}: {first_line(error)}. "
            f"Upload it later: hf upload {repository} {directory}"
        ) from error
    return commit.commit_url
