"""Pairs of texts: every format reads the same, and what is missing is named."""

import csv
import json

import pytest
import torch

import meristem as ms
from meristem.data import PaddedPairs, open_pairs
from meristem.data.encoding import END, IGNORED, SEPARATOR

ROWS = [(f'number {i}, "quoted"', "even" if i % 2 == 0 else "odd") for i in range(40)]


def write(folder, suffix, rows=ROWS, header=("text", "label")):
    folder.mkdir(exist_ok=True)
    for name, part in (("train", rows[:30]), ("test", rows[30:])):
        with (folder / f"{name}{suffix}").open("w", newline="") as file:
            if suffix == ".jsonl":
                file.writelines(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in part)
            elif suffix == ".csv":
                csv.writer(file).writerows([header, *part])
            else:
                file.writelines("\t".join(row) + "\n" for row in [header, *part])
    return str(folder)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_formats_are_alike(suffix, tmp_path):
    found = open_pairs(write(tmp_path / "one", suffix))
    other = open_pairs(write(tmp_path / "other", ".jsonl"))
    assert found.fingerprint == other.fingerprint
    assert (len(found.train), len(found.eval), found.target_length) == (27, 10, 5)
    assert len(found.tune) == 3
    texts = {bytes(text[:-1].astype("uint8")).decode() for text, _ in [*found.train, *found.tune]}
    assert texts == {text for text, _ in ROWS[:30]}
    assert open_pairs(str(tmp_path / "other"), fraction=0.5, eval_examples=3).fingerprint != other.fingerprint


def test_examples_are_padded_cut_and_ordered(tmp_path):
    folder = write(tmp_path / "pairs", ".jsonl")
    pairs = open_pairs(folder, lengths=(12, 4))
    examples = PaddedPairs(pairs.train, (16, 4), pairs.encoding.pad_token, count=60, seed=1)
    one = examples[3]
    assert {name: len(tensor) for name, tensor in one.items()} == {"input_ids": 16, "attention_mask": 16, "labels": 4}
    assert one["input_ids"][11] == END
    assert one["input_ids"][12:].eq(SEPARATOR).all()
    assert one["attention_mask"].tolist() == [1] * 12 + [0] * 4
    assert bytes(one["labels"][:3].tolist()) in (b"eve", b"odd")
    assert one["labels"][3] == END
    longer = PaddedPairs(pairs.train, (16, 6), 0, 1)[0]["labels"]
    assert longer[4:].eq(IGNORED).all()
    further = PaddedPairs(pairs.train, (16, 4), pairs.encoding.pad_token, count=60, seed=1, offset=3)
    assert all(torch.equal(further[0][name], one[name]) for name in one)
    again = [tuple(PaddedPairs(pairs.train, (16, 4), 0, 60)[i]["input_ids"].tolist()) for i in range(27)]
    assert len(set(again)) == len({text.tobytes() for text, _ in pairs.train})


@pytest.mark.parametrize("content, words", [
    ({"train.jsonl": '{"text": "a", "verdict": "b"}\n', "test.jsonl": ""}, "entry 1 has no 'label'; it has text, verdict"),
    ({"train.jsonl": "[1]\n", "test.jsonl": ""}, "entry 1 has no 'text'; it has list"),
    ({"train.jsonl": "{\n", "test.jsonl": ""}, "train.jsonl cannot be read"),
    ({"train.csv": "text,label\na,b\n"}, "has no test.jsonl, .csv or .tsv"),
    ({"train.csv": "text,label\na,b\n", "test.csv": "text,label\n"}, "1 training and 0 evaluation pairs"),
    ({"train.csv": "text,label\na\n"}, "entry 1 has no 'label'"),
])  # fmt: skip
def test_what_is_missing_is_named(content, words, tmp_path):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ms.MeristemError, match=words.replace("[", "\\[")):
        open_pairs(str(tmp_path))
    with pytest.raises(ms.MeristemError, match="no such folder"):
        open_pairs(str(tmp_path / "nowhere"))


def test_a_hub_data_set_by_name(monkeypatch):
    """The hub cannot be reached from the tests: `load_dataset` is replaced, what it returns is a real data set."""
    datasets = pytest.importorskip("datasets")
    parts = {
        name: [{"text": t, "label": a} for t, a in rows]
        for name, rows in (("train", ROWS[:30]), ("validation", ROWS[30:]))
    }
    loaded = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    found = open_pairs("owner/name:config")
    assert (len(found.train), len(found.eval)) == (27, 10)
    with pytest.raises(ms.MeristemError, match="has no column 'answer'; it has text, label"):
        open_pairs("owner/name", columns=("text", "answer"))
