"""Every Python block in the README, the guide and the method cards runs; every recipe in them is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from docs_story import run_story

from docs.tools import pages
from meristem.recipes.specs.schema import parse_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "src").rglob("*.md"))]
STORIES = [ROOT / "docs" / "start.md", ROOT / "docs" / "choosing.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
BLOCKS = [(page, language, block) for page in PAGES if page not in STORIES
          for language, block in re.findall(r"```(python|yaml)\n(.*?)```", page.read_text(), re.S)]  # fmt: skip


@pytest.mark.parametrize(
    "page, language, block", BLOCKS, ids=lambda value: value.name if isinstance(value, Path) else ""
)
def test_block(page, language, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if language == "python":
        exec(compile(block, str(page), "exec"), {"__name__": "example"})
    else:
        parse_recipe(yaml.safe_load(block))


@pytest.mark.parametrize("page", STORIES, ids=lambda page: page.stem)
def test_story(page, tmp_path, monkeypatch):
    """A guide is one story: its blocks run in their order, in one place, commands of the shell too."""
    monkeypatch.chdir(tmp_path)
    run_story(page)


def test_every_method_has_a_card():
    from meristem.growth import METHODS

    for method in METHODS.values():
        source = Path(__import__(method.__module__, fromlist=["x"]).__file__)
        assert source.with_suffix(".md").exists(), f"{method.name} has no card"


def test_the_demo_recipe_is_valid():
    parse_recipe(yaml.safe_load((ROOT / "src/meristem/recipes/demo.yaml").read_text()))


def test_links_inside_the_repository_resolve():
    written = {(ROOT / "docs" / page).resolve() for page in pages.written()}
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            place = (page.parent / target).resolve()
            assert place.exists() or place in written, f"{page.name}: {target}"
