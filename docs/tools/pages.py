"""All pages of the site in one folder: those of `docs/`, the methods' cards, and the reference written from the code.

    python -m docs.tools.pages build/docs

A link to a page of ours points to its place on the site. A link to any other file (a picture, results, a source) points to a
copy of it under `files/`, so that no link leaves the site for a place that may not exist.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import yaml

from docs.tools import reference
from docs.tools.cards import cards, first_sentence, page
from docs.tools.markdown import relink

ROOT = Path(__file__).parents[2]
SOURCE, DOCS = ROOT / "src" / "meristem", ROOT / "docs"
MAP = SOURCE / "adaptive" / "README.md"


def places() -> dict[Path, Path]:
    """Where each page of the repository stands on the site."""
    own = {page: page.relative_to(DOCS) for page in sorted(DOCS.rglob("*.md"))}
    return (
        own | {path: Path("methods", f"{name}.md") for name, path in cards(SOURCE).items()} | {MAP: Path("adaptive.md")}
    )


def written() -> set[Path]:
    """The pages of the site that have no source, since the code writes them."""
    api = {Path("reference", "api", f"{package}.md") for package in reference.PACKAGES}
    return api | {Path("methods", "index.md"), Path("reference", "cli.md"), Path("reference", "recipe-keys.md")}


def assemble(out: Path) -> None:
    """Write every page and every file that one links to below `out`, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    where, studies = places(), (DOCS / "studies.md").read_text()
    for source, place in where.items():
        text = relink(source.read_text(), _links(source, place, where, out))
        if place.parts[0] == "methods":
            text = page(text, studies, place.stem)
        _write(out / place, text)
    shutil.copyfile(Path(__file__).with_name("site.css"), out / "site.css")
    _write(out / "methods" / "index.md", methods_index())
    _write(out / "reference" / "cli.md", reference.commands())
    _write(out / "reference" / "recipe-keys.md", reference.recipe_keys())
    for name, text in reference.api_pages().items():
        _write(out / "reference" / "api" / name, text)


def _links(source: Path, place: Path, where: dict[Path, Path], out: Path):
    def new(target: str, anchor: str) -> str:
        file = (source.parent / target).resolve()
        if file.is_relative_to(DOCS.resolve()) and file.relative_to(DOCS.resolve()) in written():
            return os.path.relpath(file.relative_to(DOCS.resolve()), place.parent) + anchor
        if not file.is_file():
            raise FileNotFoundError(f"{source.relative_to(ROOT)} links to {target}, which is no file")
        if file not in where:
            copy = Path("files", file.relative_to(ROOT.resolve()))
            (out / copy).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / copy)
        there = where.get(file) or Path("files", file.relative_to(ROOT.resolve()))
        return os.path.relpath(there, place.parent) + anchor

    return new


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def method_groups() -> dict[str, list[str]]:
    """The names of the cards under each mechanism, as the site's navigation lists them."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    groups = next(entry["Methods"] for entry in nav if "Methods" in entry)
    return {
        name: [Path(next(iter(page.values()))).stem for page in pages]
        for group in groups
        if isinstance(group, dict)
        for name, pages in group.items()
    }


def methods_index() -> str:
    """One table of methods for each mechanism, with the first sentence of each card."""
    known = cards(SOURCE)
    out = ["# Methods", "", "One page for each method. [Choosing a method](../choosing.md) says which one fits.", ""]
    for group, names in method_groups().items():
        out += [f"## {group}", "", "| method | what it does |", "|---|---|"]
        for name in names:
            text = known[name].read_text()
            title = text.splitlines()[0].removeprefix("# ")
            out.append(f"| [{title}]({name}.md) | {relink(first_sentence(text), lambda *_: '').strip()} |")
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
