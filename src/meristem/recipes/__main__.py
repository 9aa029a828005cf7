"""`python -m meristem.recipes DIRECTORY` runs one node. Executors and torchrun start it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from meristem.errors import MeristemError
from meristem.orphans import watching_parent


def main() -> int:
    """Run the node. Returns 0, or 2 for bad input. Any other exit code is a crash, after which another
    attempt may succeed.
    """
    directory = Path(sys.argv[1])
    with watching_parent():
        return _run(directory)


def _run(directory: Path) -> int:
    from meristem.recipes import status
    from meristem.recipes.executors.executor import BAD_INPUT
    from meristem.recipes.node import Job
    from meristem.recipes.nodes.perform import finish, perform

    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            finish(Job.load(directory))
        else:
            perform(directory)
    except MeristemError as error:
        status.write_error(directory, str(error))
        print(f"meristem: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
