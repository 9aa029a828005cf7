"""The code that makes a node's result. It is part of the node's identity and of its record."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path

import meristem

# Code that only shows or starts runs. No result depends on it.
WITHOUT_INFLUENCE = ("cli/", "recipes/executors/", "recipes/pages/", *(f"recipes/{name}.py" for name in (
    "fan_out", "figure", "race", "status", "training/progress",
)))  # fmt: skip


@cache
def code_revision() -> str:
    """SHA-256 of the names and contents of all files of Meristem that can change a result."""
    root, digest = Path(meristem.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if not name.startswith(WITHOUT_INFLUENCE):
            digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def made_by() -> dict[str, str]:
    """The versions for the record: Meristem's version and revision, and those of the libraries that it
    uses.
    """
    import torch
    import transformers

    own = {"meristem": meristem.__version__, "revision": code_revision(), "python": platform.python_version()}
    return {**own, "torch": torch.__version__, "transformers": transformers.__version__}
