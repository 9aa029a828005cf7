"""Check every internal link and anchor of a built site.

python -m docs.tools.links site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors that a page has, and the links that leave from it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            elif (name in ("href", "src") and value) and not (tag == "link" and ("rel", "canonical") in attrs):
                self.links.append(value)


def broken(site: Path) -> list[str]:
    """One line for every link of `site` that leads nowhere: "page: link (why)". Links to other hosts are not followed."""
    pages = {file.resolve(): Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    found = []
    for file, page in pages.items():
        if file.name == "404.html":  # its links are absolute, from wherever it is shown
            continue
        for link in dict.fromkeys(page.links):
            why = _fault(link, file, pages, site.resolve())
            if why:
                found.append(f"{file.relative_to(site.resolve())}: {link} ({why})")
    return found


def _fault(link: str, file: Path, pages: dict[Path, Page], site: Path) -> str:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    path = unquote(parts.path)
    start = site if path.startswith("/") else file.parent
    target = (start / path.lstrip("/")).resolve() if path else file
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return "no such page or file"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return "no such anchor"
    return ""


def main(site: Path) -> int:
    """Print what is broken; 1 if anything is, or if there is no page at all."""
    if not (site / "index.html").is_file():
        print(f"{site} holds no index.html; build the site first")
        return 1
    found = broken(site)
    print("\n".join(found) or "every internal link and anchor resolves")
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
