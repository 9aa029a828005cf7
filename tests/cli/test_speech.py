"""What every command has in common: JSON, examples, completion, speed of the start, errors in colour."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pico
import pytest
import typer
from command_line import here, meristem
from typer.testing import CliRunner

from meristem.cli.main import app
from meristem.cli.options import METHOD_NAMES, complete_method
from meristem.cli.output import leave
from meristem.growth import METHODS

COMMANDS = typer.main.get_command(app).commands
HEAVY = "{'torch', 'transformers', 'sklearn', 'pandas', 'datasets'} & set(sys.modules)"
SPIED = f"import sys; from meristem.cli.main import main\ntry: main()\nfinally: print(sorted({HEAVY}), file=sys.stderr)"
RECIPE = """
data: {source: python-stdlib, sequence_length: 32}
nodes:
  a: {train: {model: {model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2}, tokens: 256, batch_size: 2, learning_rate: 1e-3}}
  b: {grow: {from: a, method: hypercloning, width: 2}}
  c: {train: {from: b, tokens: 256, batch_size: 2, learning_rate: 1e-3}}
race: {challenger: c, baseline: a}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    pico.build("llama").save_pretrained(path)
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_quiet_and_examples_that_parse(name):
    command = COMMANDS[name]
    assert {"--json", "--quiet"} <= {word for parameter in command.params for word in parameter.opts}
    heading, *examples = command.epilog.split("\n\n")
    assert heading == "Examples:"
    assert examples
    for example in examples:
        program, verb, *arguments = shlex.split(example)
        assert (program, verb) == ("meristem", name)
        command.make_context(name, arguments)  # raises for an option that there is not, or an argument that lacks


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_option_in_full_at_80_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    shown = CliRunner().invoke(app, [name, "--help"]).output
    words = set(shown.split())
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option":
            assert set(parameter.opts + parameter.secondary_opts) <= words, parameter.name
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_answers_are_one_json_object_each(small, tmp_path, capsys):
    big, ids = tmp_path / "big", tmp_path / "ids.json"
    ids.write_text(json.dumps({"input_ids": [[5, 6, 7]]}))
    wanted = {
        ("inspect", small): {"model_type": "llama", "source": str(small)},
        ("grow", small, big, "--width", 2): {"parameters": {"before": 19040, "after": 67264}, "pushed": None},
        ("grow", small, big, "--width", 3, "--dry-run"): {"out": None, "files": 1},
        ("verify", small, big, "--inputs", ids): {"small": str(small), "big": str(big)},
        ("shrink", big, tmp_path / "tiny", "--hidden-size", 16): {"out": str(tmp_path / "tiny")},
        ("fuse", small, small, tmp_path / "both"): {"exact": True, "parameters": {"before": [19040], "after": 67264}},
        ("average", small, small, tmp_path / "mean"): {"weights": [0.5, 0.5]},
        ("plan", small, "--width", 2, "--tokens", "1M"): {"unit": "tokens"},
    }  # fmt: skip
    for arguments, answer in wanted.items():
        assert here(*arguments, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found | answer == found, arguments
    assert here("verify", small, tmp_path / "mean", "--json") == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["relative_error"] == 0


def test_the_exit_code_of_verify_stays_with_json(small, tmp_path, capsys):
    pico.build("llama", seed=5).save_pretrained(tmp_path / "other")
    assert here("verify", small, tmp_path / "other", "--json") == 1
    assert json.loads(capsys.readouterr().out)["certificate"]["holds"] is False


def test_recipes_answer_in_json(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(RECIPE)
    for verb in ("data", "run", "race"):
        where = () if verb == "data" else ("--out", tmp_path / "out")
        assert here(verb, tmp_path / "r.yaml", *where, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        if verb == "run":
            assert [node["node"] for node in found["nodes"]] == ["a", "b", "c"]
            assert found["nodes"][0]["metrics"]["eval_loss"] > 0
        if verb == "race":
            assert found["race"]["laps"]
    assert here("diagnose", tmp_path / "r.yaml", "b", "--out", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["diagnoses"][0]["seed"] == 0


@pytest.mark.parametrize("family", ["llama", "t5", "mixtral", "bert", "gpt2", "opt_projected", "falcon_new"])
def test_inspect_fits_80_columns_and_cuts_no_name(family, tmp_path, capsys):
    model = pico.build(family)
    model.save_pretrained(tmp_path / "m")
    assert here("inspect", tmp_path / "m") == 0
    shown = capsys.readouterr().out
    too_long = [line for line in shown.splitlines()[1:] if len(line) > 80]
    assert too_long == []
    assert "…" not in shown
    words = set(shown.split())
    for name in model.state_dict():
        parts = re.sub(r"\.\d+(?=\.)", ".*", name).split(".")
        own = [".".join(parts[i:]) for i in range(len(parts))]
        assert words & set(own), name


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["--help"], 0),
        (["--version"], 0),
        *(([name, "--help"], 0) for name in COMMANDS),
        (["grow"], 2),
        (["grow", "a", "b", "--wdith", "2"], 2),
        (["fuse", "a", "b"], 2),
        (["inspect", "./nosuch"], 2),
        (["grow", "./nosuch", "out"], 2),
        (["grow", "a", "out", "--method", "hypercloned"], 2),
        (["shrink", "./nosuch", "out"], 2),
        (["fuse", "./nosuch", "./nosuch", "out"], 2),
        (["average", "./nosuch", "./nosuch", "out"], 2),
        (["average", "a", "b", "out", "--weights", "0.1,0.2,0.7"], 2),
        (["learn", "adanets", "digits", "out"], 2),
        (["learn", "adanet", "nosuch.csv", "out"], 2),
        (["plan", "./nosuch", "--tokens", "1M"], 2),
        (["verify", "./nosuch", "./nosuch"], 2),
        *(([name, "nosuch.yaml"], 2) for name in ("run", "race", "data")),
        *(([name, "bad.yaml"], 2) for name in ("run", "race", "data")),
        (["diagnose", "nosuch.yaml", "node"], 2),
    ],
)
def test_what_needs_no_network_loads_no_library(arguments, code, tmp_path):
    """Help, and errors that can be known before: a wrong flag, no such method, no such model or recipe, an unknown key."""
    (tmp_path / "bad.yaml").write_text("nodes: {a: {trian: {}}}")
    program = [sys.executable, "-c", SPIED, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "[]" or done.stderr.splitlines()[0] == "[]"


def test_what_needs_a_network_loads_no_tables_and_no_data_sets(small, tmp_path):
    """All commands on models, one after another in one process."""
    program = f"""
import sys
from meristem.cli.main import app
def run(*arguments):
    app([str(a) for a in arguments], standalone_mode=False)
small, out = {str(small)!r}, {str(tmp_path)!r}
run("inspect", small)
run("grow", small, out + "/big", "--width", 2)
run("verify", small, out + "/big")
run("shrink", out + "/big", out + "/tiny", "--hidden-size", 16)
run("fuse", small, small, out + "/both")
run("average", small, small, out + "/mean")
run("plan", small, "--width", 2, "--tokens", "1M")
print(sorted({HEAVY}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['torch', 'transformers']"


def completed(words: str) -> list[str]:
    """What a shell is told of the last word."""
    program = "import sys; sys.argv[0] = 'meristem'; from meristem.cli.main import main; main()"
    told = {
        "_MERISTEM_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - (not words.endswith(" "))),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **told}, capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def test_the_shell_completes_commands_options_and_methods():
    assert completed("meristem gr") == ["grow"]
    assert completed("meristem grow a b --hidd") == ["--hidden-size"]
    assert completed("meristem inspect a --js") == ["--json"]
    assert completed("meristem grow a b --method hyper") == ["hypercloning"]
    assert complete_method("hypercloning,st") == ["hypercloning,stacking"]
    assert sorted(METHODS) == list(METHOD_NAMES)


def test_errors_are_in_colour_on_a_terminal_only(capsys, monkeypatch):
    for terminal, said in ((True, "\x1b[1;31mmeristem:\x1b[0m it failed\n"), (False, "meristem: it failed\n")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        with pytest.raises(SystemExit) as left:
            leave("it failed", 2)
        assert left.value.code == 2
        assert capsys.readouterr() == ("", said)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        leave("it failed", 2)
    assert capsys.readouterr().err == "meristem: it failed\n"


def test_an_error_is_told_even_with_quiet_and_json(small, tmp_path):
    done = meristem("grow", small, tmp_path / "out", "--width", 0, "--quiet", "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "width must be a whole number of at least 1" in done.stderr
