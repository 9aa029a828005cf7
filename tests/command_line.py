"""The command line, from its words to its exit code: in this process, or in one of its own.

A process of its own costs three seconds of the processor and more, for the imports. It is for what belongs to processes: the
first imports, signals, variables of the environment.
"""

import contextlib
import io
import subprocess
import sys
import traceback
import warnings
from unittest import mock


def meristem(*arguments) -> subprocess.CompletedProcess:
    """What a shell would see of the command, run in this process."""
    from meristem.cli.main import main

    words, code = ["meristem", *map(str, arguments)], 0
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _warnings_on_stderr(),
        mock.patch.object(sys, "argv", words),
    ):
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
        except Exception:  # as the interpreter does
            traceback.print_exc()
            code = 1
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """The command has ended with one sentence, in which these words are."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for said in words:
        assert said in result.stderr


@contextlib.contextmanager
def _warnings_on_stderr():
    """As in a process of its own; pytest keeps warnings to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.simplefilter("default", RuntimeWarning)
        warnings.showwarning = lambda *told: print(warnings.formatwarning(*told[:4]), file=sys.stderr)
        yield


def in_own_process(*arguments) -> subprocess.CompletedProcess:
    """The same as a user's shell runs it."""
    command = [sys.executable, "-m", "meristem.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def here(*arguments) -> int:
    """The command in this process, its exit code returned and its MeristemError raised."""
    from meristem.cli.main import app

    return app([str(argument) for argument in arguments], standalone_mode=False) or 0
