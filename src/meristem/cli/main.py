"""`meristem`: its commands, and the handling of their errors."""

from __future__ import annotations

import atexit
import gc
import os
import re
import signal
import sys
import warnings
from typing import Annotated

import typer

import meristem
from meristem.cli.average import average
from meristem.cli.data import data
from meristem.cli.diagnose import diagnose
from meristem.cli.fuse import fuse
from meristem.cli.grow import grow
from meristem.cli.inspect import inspect
from meristem.cli.learn import learn
from meristem.cli.output import is_done, leave, register
from meristem.cli.parameters import SIZES
from meristem.cli.plan import plan
from meristem.cli.race import demo, race
from meristem.cli.run import run
from meristem.cli.shrink import shrink
from meristem.cli.verify import verify
from meristem.errors import MeristemError, PreservationError

OUT_OF_MEMORY = (
    "can't allocate memory|not enough memory|out of memory|Storage size calculation overflowed"  # torch's words
)
COLLECT_AFTER = 200_000  # new objects
INTERRUPTED = 130  # the exit code of shells for a program that Ctrl-C ended
TERMINATED = 143  # and for one that SIGTERM ended, which Slurm and Kubernetes send

app = typer.Typer(
    name="meristem",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"meristem {meristem.__version__}")
        raise typer.Exit()


@app.callback()
def verbs(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train large neural networks cheaply: grow them from small ones."""


register(app, inspect, "inspect SRC", "inspect SRC --json")
register(
    app,
    grow,
    "grow SRC OUT --width 2",
    "grow SRC OUT --method lemon --hidden-size 768",
    "grow SRC OUT --like TARGET --dry-run",
    "grow SRC OUT --width 2 --push-to-hub me/grown",
    in_context=SIZES,
)
register(
    app,
    shrink,
    "shrink SRC OUT --hidden-size 256",
    "shrink SRC OUT --method prune --num-hidden-layers 6 --data text.txt",
    "shrink SRC OUT --method prune --intermediate-size 512 --inputs examples.safetensors",
    in_context=SIZES,
)
register(app, fuse, "fuse A B OUT", "fuse A B OUT --weights 0.7,0.3", "fuse A B OUT --experts")
register(app, average, "average STEP1 STEP2 STEP3 OUT", "average STEP1 STEP2 OUT --weights 1-sqrt")
register(app, learn, "learn adanet TABLE.csv OUT", "learn energynet digits OUT --seed 1")
register(
    app,
    plan,
    "plan SRC --width 2 --tokens 10M",
    "plan SRC --like TARGET --tokens 20B",
    "plan SRC --num-experts 8 --experts-per-token 2 --tokens 1B --json",
    in_context=SIZES,
)
register(app, verify, "verify SMALL BIG", "verify SMALL BIG --inputs ids.json --json")
register(app, run, "run RECIPE.yaml", "run RECIPE.yaml --executor local --executor-option slots=2")
register(app, race, "race RECIPE.yaml")
register(app, data, "data RECIPE.yaml")
register(app, diagnose, "diagnose RECIPE.yaml NODE --bound 0.1")
register(app, demo, "demo", "demo --out /tmp/demo")


def main() -> None:
    """Run the command line. Every MeristemError becomes one clear message and exit code 2 (1 for a broken
    promise).
    """
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER, 10, 10)  # looking for garbage in what libraries make as they load,
    atexit.register(gc.freeze)  # and once more at the end, took a third of a short command's time
    os.environ.setdefault(
        "THP_MEM_ALLOC_ENABLE", "1"
    )  # torch's large tensors lie in huge pages: a third of the kernel's time
    warnings.formatwarning = lambda message, *_, **__: f"meristem: {message}\n"
    code = INTERRUPTED

    def terminate(*_: object) -> None:
        nonlocal code
        code = TERMINATED
        raise KeyboardInterrupt  # what is open is cleaned up as after Ctrl-C

    usual = signal.signal(signal.SIGTERM, terminate)
    try:
        app(_spelt_out(sys.argv[1:]))
    except MeristemError as error:
        leave(str(error), 1 if isinstance(error, PreservationError) else 2)
    except OSError as error:
        leave(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        leave("there is not enough memory for this; ask for smaller sizes, or skip the proof with --no-verify", 2)
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != INTERRUPTED:
            raise
        said = "nothing is left half-written. Run the same command again"
        leave(f"interrupted; {'all was done by then' if is_done() else said}", code)
    finally:
        gc.set_threshold(*before)
        signal.signal(signal.SIGTERM, usual)


def _spelt_out(arguments: list[str]) -> list[str]:
    """`--verify sample=4` as `--sample 4`. A flag with an optional value would take any word that follows
    it.

    Raises:
        MeristemError: if `sample=` is followed by no number.
    """
    spelt: list[str] = []
    for argument in arguments:
        value = argument.removeprefix("--verify=")
        if value.startswith("sample=") and (value != argument or spelt[-1:] == ["--verify"]):
            count = value.removeprefix("sample=")
            if not count.isdecimal():
                raise MeristemError(f"--verify {value}: {count!r} is not a number of blocks; try --verify sample=4")
            spelt = [*(spelt if value != argument else spelt[:-1]), "--sample", count]
        else:
            spelt.append(argument)
    return spelt


if __name__ == "__main__":
    main()
