"""The command line: in a process of its own, or in this one."""

import subprocess
import sys


def meristem(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "meristem.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def here(*arguments) -> int:
    """The command in this process, its exit code returned and its MeristemError raised."""
    from meristem.cli.main import app

    return app([str(argument) for argument in arguments], standalone_mode=False) or 0
