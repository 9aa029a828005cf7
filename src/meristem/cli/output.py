"""Where commands print: answers on stdout, everything else on stderr, and one JSON object with `--json`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from meristem.errors import MeristemError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and everything else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only answers and errors: no progress, no notes.")]


@dataclass(frozen=True)
class Answer:
    """The result of a command as plain data, and its exit code."""

    content: dict[str, Any]
    exit_code: int = 0


def register(
    app: typer.Typer, command: Callable[..., Answer], *examples: str, in_context: Mapping[str, Any] | None = None
) -> None:
    """Make `command` a command of `app`, with `--json` and `--quiet`, and with `examples` at the end of its
    help.

    Args:
        app: the application.
        command: the function.
        examples: command lines.
        in_context: options that the command reads from its context and not from its arguments: a dictionary
            from the name to the option, shown after `--method`.
    """
    signature = inspect.signature(command, eval_str=True)
    own = set(signature.parameters)

    @functools.wraps(command)
    def verb(**given: Any) -> None:
        with _speaking(given["as_json"], given["quiet"]):
            answer = command(**{name: value for name, value in given.items() if name in own})
        _DONE[0] = True
        if given["as_json"]:
            print(as_text(answer.content))
        if answer.exit_code:
            raise typer.Exit(answer.exit_code)

    parameters = list(signature.parameters.values())
    after = next((place + 1 for place, parameter in enumerate(parameters) if parameter.name == "method"), 0)
    parameters[after:after] = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=kind)
        for name, kind in (in_context or {}).items()
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("as_json", AsJson), ("quiet", Quiet))
    ]
    verb.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    epilog = "Examples:\n\n" + "\n\n".join(f"meristem {example}" for example in examples)
    app.command(command.__name__, epilog=epilog)(verb)


@contextlib.contextmanager
def _speaking(as_json: bool, quiet: bool) -> Iterator[None]:
    """With `--json`, printed text goes to stderr. With `--quiet`, stderr and notes are dropped."""
    with contextlib.ExitStack() as stack:
        if quiet:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            stack.enter_context(_quietly())
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


_QUIET = [False]
_DONE = [False]


def is_done() -> bool:
    """Whether the command has ended, so that its result exists."""
    return _DONE[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    before, _QUIET[0] = _QUIET[0], True
    try:
        yield
    finally:
        _QUIET[0] = before


def note(text: str) -> None:
    """Print a sentence on stdout about what was written, unless `--quiet` is given."""
    if not _QUIET[0]:
        print(text)


def as_text(content: dict[str, Any]) -> str:
    """Strict JSON: numbers that are not finite become null, and paths become text."""
    return json.dumps(_plain(content), indent=2, allow_nan=False, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def calm_libraries() -> None:
    """Stop libraries from drawing bars, giving advice, and loading modules that no command uses."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


def leave(message: str, code: int) -> None:
    """Print one clear message on stderr, in colour on a terminal, and exit with the code."""
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    name = "\x1b[1;31mmeristem:\x1b[0m" if coloured else "meristem:"
    print(f"{name} {message}", file=sys.stderr)
    sys.exit(code)


def parents_and_out(verb: str, sources: list[str], what: str) -> tuple[list[str], str]:
    """Split A B ... OUT into the sources and OUT.

    Raises:
        MeristemError: if there are fewer than two sources.
    """
    if len(sources) < 3:
        raise MeristemError(f"{verb} takes at least two {what} and OUT, got {' '.join(sources)}")
    return sources[:-1], sources[-1]
