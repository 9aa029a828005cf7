"""Both notebooks run in a kernel of their own, on less data, and find what they say."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.slow  # a kernel that loads torch


def printed(name: str, monkeypatch, **smaller: int) -> str:
    """What a notebook prints when constants of these names have these values."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent / "src"), os.environ.get("PYTHONPATH", "")]))
    book = nbformat.read(EXAMPLES / name, as_version=4)
    for constant, value in smaller.items():
        pattern = re.compile(rf"^{constant} = [\d_]+", re.M)
        assert sum(len(pattern.findall(cell.source)) for cell in book.cells) == 1
        for cell in book.cells:
            cell.source = pattern.sub(f"{constant} = {value}", cell.source)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_a_first_growth(monkeypatch):
    said = printed("first_growth.ipynb", monkeypatch, STEPS=20)
    small, grown, on = map(float, re.findall(r"held-out loss ([\d.]+)", said))
    assert grown == pytest.approx(small, abs=0.002)
    assert on < grown - 0.1
    before, after = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) parameters", said))
    assert 3 < after / before < 4


def test_plan_and_race(monkeypatch):
    said = printed("plan_and_race.ipynb", monkeypatch, TOKENS=20000)
    assert "method: hypercloning" in said
    assert "- hypercloning: grown at 8" in said
    losses = [float(found) for found in re.findall(r"loss ([\d.]+) for", said)]
    spent = [float(found) for found in re.findall(r"for ([\d.]+) TFLOPs", said)]
    assert len(losses) == 2
    assert all(loss < 5.55 for loss in losses)  # log 256
    assert 0 < spent[1] < spent[0]


@pytest.mark.parametrize("name", ["first_growth.ipynb", "plan_and_race.ipynb"])
def test_notebooks_are_kept_without_outputs(name):
    book = nbformat.read(EXAMPLES / name, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
