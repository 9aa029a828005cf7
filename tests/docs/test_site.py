"""The site: its pages are complete, what is written from the code is true, and every link of the built site resolves."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pico
import pytest
import yaml

from docs.tools import cards, links, pages, prose, reference
from docs.tools.markdown import relink

ROOT = Path(__file__).parents[2]


def listed(entry) -> list[str]:
    """The pages in the navigation, in order."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in listed(part)]


def test_every_page_is_in_the_navigation_once():
    nav = listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    everything = {*pages.places().values(), *pages.written()}

    assert sorted(nav) == sorted(str(place) for place in everything)


def test_every_public_name_is_in_the_reference():
    import meristem as ms

    shown = [path.rsplit(".", 1)[1] for paths in reference.public_names().values() for path in paths]
    assert set(ms.__all__) - {"__version__"} <= set(shown)
    assert len(shown) == len(set(shown))
    assert {"WidthMethod", "NoisyWidthMethod", "Fusion", "Schedule", "Incubation"} <= set(shown)  # others refer to them
    assert {"AdaNetClassifier", "junction_learning_rate", "race", "write_model"} <= set(shown)


def test_keys_of_a_recipe_with_types_and_defaults():
    rows = reference.recipe_keys().splitlines()

    assert "| `baseline` | text | required |" in rows
    assert "| `metric` | `eval_loss` | `eval_loss` |" in rows
    assert "| `patience` | whole number | `3` |" in rows
    assert "| `hypercloning` | `noise` | float | `0.1` |" in rows
    assert "| `optimizer` | `carry`, `reset` | `reset` |" in rows


def test_commands_with_their_options():
    page = reference.commands()

    assert "## grow\n" in page
    assert "    meristem grow SRC OUT [OPTIONS]" in page
    assert "| `--overwrite`{.whole} | Replace OUT if Meristem or save_pretrained wrote everything in it. |  |" in page
    assert "| `--verify`{.whole}, `--no-verify`{.whole} | Measure that the function is kept" in page


def test_a_card_gets_headings_and_its_studies():
    card = "# Tile\n\n**What.** Copies.\n\n| option | meaning |\n|---|---|\n\n```python\n**When.** no head\n```\n\n**Source.** A.\n"
    studies = "| [Width](studies/growth.md) (tiny) | `tile@8`: claim | passes | +0.1 | 3% | worse |\n| x | `tiles`: no | | | | |\n"

    page = cards.page(card, studies, "tile")

    heads = [line for line in page.splitlines() if line.startswith("#")]
    assert heads == ["# Tile", "## What it does", "## Options", "## Example", "## Evidence", "## Source"]
    assert "| [Width](../studies/growth.md) (tiny) | `tile@8`: claim | passes | +0.1 | 3% | worse |" in page
    assert "`tiles`" not in page
    assert "No [study]" in cards.page(card, "", "tile")


@pytest.mark.parametrize("name", cards.cards(pages.SOURCE))
def test_every_method_has_the_same_headings(name):
    text = cards.headed(cards.cards(pages.SOURCE)[name].read_text())

    assert text.startswith("# ")
    heads = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    asked = ["What it does", "When to use it", "When not to use it", "Cost", "Example", "Source"]
    assert set(asked) <= set(heads)
    assert [head for head in heads if head in asked][:3] == asked[:3]
    assert cards.first_sentence(cards.cards(pages.SOURCE)[name].read_text())


def test_links_are_rewritten_outside_of_code_only():
    text = "[a](x.md#here) [b](https://y.org) [c](#there)\n\n```sh\n[d](x.md)\n```\n"

    assert relink(text, lambda target, anchor: f"new/{target}{anchor}") == text.replace(
        "(x.md#here)", "(new/x.md#here)"
    )


def test_the_checker_names_what_leads_nowhere(tmp_path):
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "index.html").write_text('<h1 id="top">x</h1><a href="../">home</a><a href="#top">up</a>')
    home = '<a href="guide/#top">ok</a><a href="guide/#no">1</a><a href="gone/">2</a><img src="no.png"><a href="https://z.org">3</a>'
    (tmp_path / "index.html").write_text(home)

    assert links.broken(tmp_path) == [
        "index.html: guide/#no (no such anchor)",
        "index.html: gone/ (no such page or file)",
        "index.html: no.png (no such page or file)",
    ]


def test_every_line_of_prose_fits():
    assert prose.check() == []


def test_what_is_over_110_columns_and_can_be_broken():
    link, word = f"[{'x ' * 60}](y.md)", "x" * 120
    text = "\n".join(
        ["a " * 54 + "b", "a " * 55 + "b", f"| {'a ' * 60} |", "# " + "a " * 60, link, word, "", "    " + "a " * 60]
    )

    assert prose.too_long(text + "\n\n```\n" + "a " * 60 + "\n```\n") == [2]


def test_which_lines_of_docstrings_are_over_110_columns():
    long = "a " * 60
    source = f'''"""One.

{long}
"""
name = "{long}"  # {long}


def f():
    """Two.

    | {long} |

    {"x" * 120}
    {"a " * 52}b
    {"a " * 53}b
    """
'''

    assert prose.too_long_docstrings(source) == [3, 15]


def test_reflowing_fills_prose_and_leaves_the_rest():
    long = "word " * 30 + "- end"
    table, code = "| " + "cell " * 40 + "|", "```sh\n" + "run " * 40 + "\n```"
    text = f"# Title\n\n{long}\nmore\n\n- {long}\n  goes on\n- next\n\n{table}\n\n{code}\n"

    new = prose.reflow(text)

    assert new.split() == text.split()
    assert prose.too_long(new) == []
    assert table in new
    assert code in new
    lines = new.splitlines()
    assert lines[2] == ("word " * 22).strip()
    assert [line[:6] for line in lines[5:8]] == ["- word", "  word", "- next"]
    assert not any(line.lstrip().startswith("- end") for line in lines)
    assert prose.reflow(new) == new


def test_reflowing_refuses_code_and_leaves_pages_that_a_program_writes(tmp_path, capsys):
    page, code = tmp_path / "page.md", tmp_path / "code.py"
    short, filled = "one\ntwo\n", "one two\n"
    page.write_text(short)
    code.write_text("a = 1\nb = 2\n")

    assert prose.main(["--reflow", str(page), str(code)]) == 2
    assert f"fills Markdown only (.md), got {code}; nothing is written" in capsys.readouterr().err
    assert (page.read_text(), code.read_text()) == (short, "a = 1\nb = 2\n")

    assert prose.main(["--reflow", str(page)]) == 0
    assert page.read_text() == filled

    for name in ("studies.md", "architectures.md"):
        written = (prose.ROOT / "docs" / name).read_text()
        assert prose.reflow(written) != written
        page.write_text(written)
        assert prose.main(["--reflow", str(page)]) == 0
        assert page.read_text() == written
        assert f"{page}: a program writes this page" in capsys.readouterr().err


def test_the_page_on_files_names_what_a_growth_writes(tmp_path):
    from meristem.cli.main import app

    pico.build("llama").save_pretrained(tmp_path / "small")
    app(["grow", str(tmp_path / "small"), str(tmp_path / "big"), "--width", "2"], standalone_mode=False)
    files, record = (
        set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^(\|[^|]+\|)", part, re.M))))
        for part in (ROOT / "docs/reference/files.md").read_text().split("## ")[1:3]
    )

    assert {file.name for file in (tmp_path / "big").iterdir()} <= files
    assert set(json.loads((tmp_path / "big" / "meristem.json").read_text())) <= record


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="the site needs pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning_and_every_link_resolves():
    from docs.tools.build import build

    assert build() == []
    assert links.broken(ROOT / "site") == []
    assert (ROOT / "site" / "methods" / "hypercloning" / "index.html").is_file()
