"""Run a page as its reader would: every block in its order, in the working directory.

Python blocks share their names. A block of YAML is written to the file that its title names. Of a block of the shell, the lines that call
`meristem` run inside this process; a line that ends in `# exit 1` has to end with that code. What cannot run in a test (other programs,
`--executor`) must begin with one of `ELSEWHERE`, so that no command is left out by accident.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import yaml

from meristem.cli.main import main
from meristem.recipes.specs.schema import parse_recipe

FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.S | re.M)
ELSEWHERE = ("pip ", "make ", "python -m venv", "torchrun ", "srun ", "git ", "meristem demo")
LANGUAGES = {"python", "sh", "yaml", "text"}


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, title, text) of every fenced block. Raises AssertionError for a language that is not run."""
    found = FENCE.findall(page.read_text())
    unknown = {language for language, _, _ in found} - LANGUAGES
    assert not unknown, f"{page.name}: blocks of {sorted(unknown)} are not run; use {sorted(LANGUAGES)}"
    return found


def run_story(page: Path) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for language, title, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
        elif language == "yaml":
            parse_recipe(yaml.safe_load(text))
            Path(title or "recipe.yaml").write_text(text)
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                run_line(line, page)


def run_line(line: str, page: Path) -> None:
    command, _, remark = line.partition("#")
    command = command.strip()
    if not command or command.startswith(ELSEWHERE):
        return
    if command.startswith("cp -r "):
        shutil.copytree(*command.split()[2:])
        return
    assert command.startswith("meristem "), f"{page.name}: no test runs {command!r}"
    wanted = int(code.group(1)) if (code := re.search(r"exit (\d)", remark)) else 0
    assert exit_code(shlex.split(command)) == wanted, f"{page.name}: {command}"


def exit_code(arguments: list[str]) -> int:
    """What the command line's own entry point ends with."""
    before, sys.argv = sys.argv, arguments
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        sys.argv = before
    return 0
