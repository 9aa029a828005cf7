from __future__ import annotations

import numpy as np
import pytest

import meristem as ms
from meristem.data import Sequences, open_corpus


def test_the_standard_library_is_a_corpus():
    corpus = open_corpus("python-stdlib")
    assert corpus.vocab_size == 256
    assert len(corpus.train) > 3_000_000
    assert 0.01 < len(corpus.eval) / len(corpus.train) < 0.3
    assert "def " in corpus.train[:100_000].astype(np.uint8).tobytes().decode(errors="replace")
    assert open_corpus("python-stdlib").fingerprint == corpus.fingerprint


def test_a_folder_splits_by_file_and_a_file_by_position(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"document {i} " * 20)
    folder = open_corpus(str(tmp_path))
    train, held_out = (set(part.astype(np.uint8).tobytes().split(b"\0")) for part in (folder.train, folder.eval))
    assert held_out - {b""}
    assert not (train & held_out) - {b""}
    tune = set(folder.tune.astype(np.uint8).tobytes().split(b"\0")) - {b""}
    assert tune
    assert not tune & (train | held_out)
    single = open_corpus(str(tmp_path / "0.txt"))
    whole = np.concatenate([single.train, single.tune, single.eval])
    assert whole.astype(np.uint8).tobytes().decode() == "document 0 " * 20
    assert len(single.tune) == len(single.eval)
    assert len(single.eval) == len("document 0 " * 20) // 20


def test_a_hub_data_set_by_name(monkeypatch):
    """The hub cannot be reached from the tests: `load_dataset` is replaced, what it returns is a real data set."""
    import datasets

    rows = datasets.Dataset.from_dict(
        {"text": [f"document number {i} " * 5 for i in range(80)], "other": list(range(80))}
    )
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or rows)
    corpus = open_corpus("owner/name:config")
    assert asked == [(("owner/name", "config"), {"split": "train"})]
    assert b"document number" in corpus.train.astype(np.uint8).tobytes()
    with pytest.raises(ms.MeristemError, match="has no column 'txet'; it has text, other"):
        open_corpus("owner/name", text_column="txet")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_data_set_in_local_files(tmp_path, monkeypatch, kind, stream):
    """A column of it, not the file's own text; what is asked for is never left out without a word."""
    import datasets

    monkeypatch.setenv("MERISTEM_CACHE", str(tmp_path / "cache"))
    rows = datasets.Dataset.from_dict({"said": [f"number {i} " * 5 for i in range(80)], "other": list(range(80))})
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / f"train.{kind}"
    {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[kind](str(file))
    whole = "".join(f"number {i} " * 5 for i in range(80))
    for source in (file, file.parent):
        corpus = open_corpus(str(source), text_column="said", stream=stream)
        text = np.concatenate([corpus.train, corpus.tune, corpus.eval]).astype(np.uint8).tobytes()
        assert len(text.replace(b"\0", b"")) == len(whole)
        assert corpus.documents == 80
        assert b"other" not in text
        with pytest.raises(ms.MeristemError, match="has no column 'sed'; it has said, other"):
            open_corpus(str(source), text_column="sed", stream=stream)


def test_a_text_without_text(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ms.MeristemError, match=r"a\.txt holds no text"):
        open_corpus(str(tmp_path / "a.txt"))


def test_what_is_not_there(tmp_path):
    with pytest.raises(ms.MeristemError, match="no such file or folder"):
        open_corpus(str(tmp_path / "none.txt"))
    with pytest.raises(ms.MeristemError, match="holds no text files"):
        open_corpus(str(tmp_path))
    with pytest.raises(ms.MeristemError, match=r"cannot be loaded|needs: pip install"):
        open_corpus("no-such-owner/no-such-data-set")
    (tmp_path / "a.txt").write_text("text " * 100)
    with pytest.raises(ms.MeristemError, match=r"tokenizer .* cannot be loaded"):
        open_corpus(str(tmp_path / "a.txt"), tokenizer="no-such-owner/no-such-tokenizer")


def test_sequences_are_a_permutation_that_goes_on_where_it_stopped():
    tokens = np.arange(100, dtype=np.int32)
    whole = [Sequences(tokens, 10, 20, seed=3)[i]["input_ids"].tolist() for i in range(20)]
    assert sorted(w[0] for w in whole[:10]) == list(range(0, 100, 10))
    assert whole[:10] != whole[10:]  # a new order each time round
    assert [Sequences(tokens, 10, 8, seed=3, offset=12)[i]["input_ids"].tolist() for i in range(8)] == whole[12:]
    assert whole != [Sequences(tokens, 10, 20, seed=4)[i]["input_ids"].tolist() for i in range(20)]
    with pytest.raises(ms.MeristemError, match="fewer than one sequence of 101"):
        Sequences(tokens, 101, 1)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_are_no_text(tmp_path, monkeypatch, kind):
    """A file with a column `text` is read by it, without being asked to; JSON of another shape is text as it lies."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("MERISTEM_CACHE", str(tmp_path / "cache"))
    rows = datasets.Dataset.from_dict({"id": list(range(40)), "text": [f"row {n}, one line" for n in range(40)]})
    file = tmp_path / f"rows.{kind}"
    {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[kind](file)
    corpus = open_corpus(str(file))
    assert corpus.documents == 40
    read = bytes(corpus.train.astype("uint8")) + bytes(corpus.tune.astype("uint8")) + bytes(corpus.eval.astype("uint8"))
    assert b"row 7, one line" in read
    assert b'"id"' not in read
    assert b"PAR1" not in read
    other = tmp_path / "other.jsonl"
    other.write_text('{"body": "x"}\n' * 400)
    assert open_corpus(str(other)).documents == 1


def test_a_file_that_is_not_there_is_asked_of_no_hub():
    for source in ("nothere.txt", "some/where/else", "tokens.bin"):
        with pytest.raises(ms.MeristemError, match=f"{source}: no such file or folder"):
            open_corpus(source)


def test_shards_of_tokens_are_not_taken_for_text(tmp_path):
    """As llm.c leaves them."""
    for number in range(2):
        (tmp_path / f"fineweb_train_{number}.bin").write_bytes(b"\0" * 64)
        (tmp_path / f"fineweb_train_{number}.json").write_text('{"vocab_size": 256}')
    with pytest.raises(
        ms.MeristemError,
        match=r"holds token files \(fineweb_train_0.bin, fineweb_train_1.bin\), and none is named train",
    ):
        open_corpus(str(tmp_path))
