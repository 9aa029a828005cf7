"""`python -m meristem.recipes.launch PROCESSES DIRECTORY` runs torchrun for one node. torchrun and its
workers end with the process that started it.
"""

from __future__ import annotations

import os
import sys

from meristem.orphans import PARENT, watching_parent


def main() -> None:
    """Run torchrun, and exit with its exit code."""
    processes, directory = sys.argv[1:]
    with watching_parent():
        from torch.distributed.run import main as torchrun

        os.environ[PARENT] = str(os.getpid())  # of the workers
        torchrun(["--standalone", f"--nproc-per-node={processes}", "-m", "meristem.recipes", directory])


if __name__ == "__main__":
    main()
