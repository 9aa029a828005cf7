"""Text that cannot be used as it is says where and why."""

from __future__ import annotations

import pytest

import meristem as ms
from meristem.data import open_corpus


@pytest.mark.parametrize("stream", [False, True])
def test_a_line_that_is_no_json(tmp_path, stream):
    pytest.importorskip("datasets")
    file = tmp_path / "rows.jsonl"
    rows = ['{"text": "one"}'] * 40
    file.write_text("\n".join([*rows, '{"text": "two', *rows]))
    with pytest.raises(ms.MeristemError, match=r"rows\.jsonl: line 41 is not valid JSON: Unterminated string"):
        open_corpus(str(file), stream=stream)


def test_too_few_documents_say_what_works(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} text " * 20)
    with pytest.raises(ms.MeristemError, match=r"2 documents are too few .* or all text in one file"):
        open_corpus(str(tmp_path))
