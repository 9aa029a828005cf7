"""The documentation site, from pages to checked links: `make docs`.

    python -m docs.tools.build

Any warning of the builder, or of the reader of docstrings, ends it with 1.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from docs.tools import links
from docs.tools.pages import ROOT, assemble

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def build() -> list[str]:
    """Build the site of `mkdocs.yml` and return what the builder complains about."""
    assemble(ROOT / "build" / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    said = COLOURS.sub("", ran.stdout + ran.stderr)
    plain = ("Build started", "Build finished", "No issues found")
    complaints = [line for line in said.splitlines() if line.strip() and not line.startswith(plain)]
    return complaints or ([f"zensical ended with {ran.returncode}"] if ran.returncode else [])


def main() -> int:
    """Build, then check the links."""
    complaints = build()
    if complaints:
        print("\n".join(complaints))
        return 1
    return links.main(Path(ROOT, "site"))


if __name__ == "__main__":
    raise SystemExit(main())
