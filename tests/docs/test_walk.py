"""The page on the way of one tensor names functions that a real growth calls, in the order in which it calls them."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from types import FrameType

import pico

import meristem
from meristem.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "walk.md"
SOURCE = Path(next(iter(meristem.__path__)))


def stops() -> list[tuple[str, str]]:
    """(file, function) of every row."""
    return re.findall(r"`([\w/]+\.py): (\w+)`", PAGE.read_text())


def calls(small: Path, big: Path) -> list[tuple[str, str]]:
    """(file, function) of every function of ours, in the order of the first calls."""
    seen: dict[tuple[str, str], None] = {}

    def watch(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(SOURCE)):
            seen.setdefault((str(Path(code.co_filename).relative_to(SOURCE)), code.co_name))

    before = sys.getprofile()
    threading.setprofile(watch)  # the passes of a proof run in threads
    sys.setprofile(watch)
    try:
        app(["grow", str(small), str(big), "--width", "2"], standalone_mode=False)
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]
    return list(seen)


def test_the_stops_are_called_in_the_order_of_the_page(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    named, found = stops(), calls(tmp_path / "small", tmp_path / "big")

    assert len(named) == 11
    assert set(named) <= set(found)
    assert sorted(named, key=found.index) == named
