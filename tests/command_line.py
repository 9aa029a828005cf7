"""The command line in a process of its own."""

import subprocess
import sys


def meristem(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "meristem.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
