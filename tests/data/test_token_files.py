"""Tokens on disk: read as they lie, in no memory of their own; text is tokenised once."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest

import meristem as ms
from meristem.data import Sequences, open_corpus, token_cache
from meristem.data import corpus as corpus_file
from meristem.data.order import Order

TOKENS = np.arange(2000) % 300


def write(folder, name="train.bin", tokens=TOKENS, dtype="uint16", header=0, said=None):
    folder.mkdir(exist_ok=True)
    file = folder / name
    if file.suffix == ".npy":
        np.save(file, tokens.astype(dtype))
    else:
        file.write_bytes(b"\1" * header + tokens.astype(dtype).tobytes())
    (folder / "meta.json").write_text(json.dumps({"vocab_size": 300, **(said or {})}))
    return file


@pytest.mark.parametrize("name, dtype, header, said", [
    ("a.bin", "uint16", 0, {}), ("a.bin", "uint32", 0, {"dtype": "uint32"}), ("a.bin", "uint16", 1024, {"offset": 1024}),
    ("a.npy", "uint32", 0, {}), ("a.npy", "uint16", 0, {}),
])  # fmt: skip
def test_formats_are_alike(tmp_path, name, dtype, header, said):
    found = open_corpus(str(write(tmp_path, name, TOKENS, dtype, header, said)))
    parts = found.train, found.tune, found.eval
    assert [len(part) for part in parts] == [1800, 100, 100]
    assert np.concatenate(parts).tolist() == TOKENS.tolist()
    assert all(isinstance(part, np.memmap) for part in parts)
    assert found.vocab_size == 300


@pytest.mark.parametrize("kind, version, dtype", [(20240520, 1, "uint16"), (20240801, 7, "uint32")])
def test_llm_cs_header_is_not_read_as_tokens(tmp_path, kind, version, dtype):
    """As its data scripts write them: 256 numbers of which three say something, then the tokens."""
    header = np.zeros(256, dtype=np.int32)
    header[:3] = kind, version, len(TOKENS)
    (tmp_path / "train.bin").write_bytes(header.tobytes() + TOKENS.astype(dtype).tobytes())
    (tmp_path / "meta.json").write_text('{"vocab_size": 300}')
    found = open_corpus(str(tmp_path / "train.bin"))
    assert np.concatenate([found.train, found.tune, found.eval]).tolist() == TOKENS.tolist()


def megatron(folder, dtype="int32", code=4, version=1):
    """As its `preprocess_data.py` writes it: NAME.bin, and NAME.idx with the lengths and places of sequences."""
    lengths = np.array([1200, 800], dtype=np.int32)
    (folder / "web_text.bin").write_bytes(TOKENS.astype(dtype).tobytes())
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, code, len(lengths), len(lengths) + 1)
    places = np.array([0, 1200 * np.dtype(dtype).itemsize], dtype=np.int64)
    (folder / "web_text.idx").write_bytes(head + lengths.tobytes() + places.tobytes() + np.arange(3).tobytes())
    (folder / "meta.json").write_text('{"vocab_size": 300}')
    return folder / "web_text.bin"


@pytest.mark.parametrize("dtype, code", [("int32", 4), ("uint16", 8)])
def test_megatrons_index_says_how_tokens_are_written(tmp_path, dtype, code):
    """Read as uint16, every second of an int32 file's tokens would be 0, and none would be out of range."""
    found = open_corpus(str(megatron(tmp_path, dtype, code)))
    assert np.concatenate([found.train, found.tune, found.eval]).tolist() == TOKENS.tolist()


def test_what_of_megatrons_files_is_refused(tmp_path):
    def refused(words, source):
        with pytest.raises(ms.MeristemError, match=words):
            open_corpus(str(source))

    file = megatron(tmp_path)
    refused(r"no such file or folder; Megatron's tokens are in .*web_text\.bin", file.with_suffix(""))
    refused(
        r"web_text\.idx is not text in UTF-8: it holds zero bytes; its tokens are in web_text\.bin",
        file.with_suffix(".idx"),
    )
    (tmp_path / "meta.json").write_text('{"vocab_size": 300, "dtype": "uint16"}')
    refused(r"its \.idx file says int32, the JSON file next to it dtype 'uint16'", file)
    refused("version 1 with numbers of kind 9 is not known", megatron(tmp_path, code=9))
    refused("tokens are uint16, uint32, int32; .*int64", megatron(tmp_path, "int64", 5))
    file.with_suffix(".idx").write_bytes(file.with_suffix(".idx").read_bytes()[:12])
    refused("ends after 12 bytes", file)


@pytest.mark.parametrize("content", ["words".encode("utf-16"), b"\x1f\x8b\x08\0" * 9], ids=["utf-16", "gzip"])
def test_a_file_that_is_no_text_is_not_read_as_text(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ms.MeristemError, match="is not text in UTF-8: it holds zero bytes"):
        open_corpus(str(tmp_path / "a.txt"))


def test_a_token_that_is_none_is_found_when_it_is_read(tmp_path):
    """Samples do not meet it; a network would end with an index that is out of range."""
    tokens = np.tile(TOKENS, 400)
    tokens[5000] = 700
    corpus = open_corpus(str(write(tmp_path, "a.bin", tokens)))
    sequences = Sequences(corpus.train, 100, 10**4, vocab_size=corpus.vocab_size)
    with pytest.raises(ms.MeristemError, match="sequence 50 holds token 700, and its vocabulary has 300"):
        for number in range(len(corpus.train) // 100):
            sequences[number]


def test_a_folder_holds_its_own_splits(tmp_path):
    write(tmp_path / "set", "train.bin")
    write(tmp_path / "set", "val.bin", TOKENS[:70])
    found = open_corpus(str(tmp_path / "set"))
    assert (len(found.train), len(found.tune), len(found.eval)) == (1900, 100, 70)
    before = found.fingerprint
    write(tmp_path / "set", "val.bin", TOKENS[1:71])
    assert open_corpus(str(tmp_path / "set")).fingerprint != before


@pytest.mark.parametrize("change, words", [
    ({"name": "a.bin", "tokens": TOKENS[:3].astype("uint8"), "dtype": "uint8"}, "not a whole number of uint16 tokens"),
    ({"name": "a.npy", "tokens": TOKENS.reshape(2, -1)}, "expected a 1-D array"),
    ({"name": "a.npy", "dtype": "float32"}, "expected a 1-D array of uint16"),
    ({"said": {"vocab_size": "many"}}, "names no vocab_size"),
    ({"said": {"vocab_size": True}}, "names no vocab_size"),
    ({"said": {"offset": "1k"}}, "offset is '1k'; expected a whole number from 0 to 3999"),
    ({"said": {"end_token": 300}}, "end_token is 300; expected a whole number from 0 to 299"),
    ({"said": {"pad_token": "<pad>"}}, "pad_token is '<pad>'; expected a whole number"),
    ({"said": {"vocab_size": 299}}, r"holds token 299, and its vocabulary has 299"),
    ({"name": "a.npy", "tokens": TOKENS.astype("int32") - 1, "dtype": "int32"}, r"holds token -1, and"),
])  # fmt: skip
def test_files_that_are_no_tokens(tmp_path, change, words):
    with pytest.raises(ms.MeristemError, match=words):
        open_corpus(str(write(tmp_path, **change)))


def test_what_lies_beside_is_asked_for(tmp_path):
    file = write(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(ms.MeristemError, match=r"needs train\.json \(or meta\.json\) next to it"):
        open_corpus(str(file))


def test_two_gigabytes_cost_no_memory(tmp_path):
    """A sparse file of 2 GB: opened, and four thousand sequences read from all over it."""
    file = write(tmp_path, "big.bin", TOKENS[:1])
    with file.open("r+b") as content:
        content.truncate(2 * 10**9)
    code = (
        "import resource, sys; from meristem.data import open_corpus, Sequences\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = open_corpus(sys.argv[1]); part = Sequences(found.train, 256, 4000)\n"
        "assert sum(int(part[i]['input_ids'].sum()) for i in range(4000)) == 0\n"
        "print(len(found.train), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    tokens, kilobytes = map(int, done.stdout.split())
    assert tokens == 900_000_000
    assert kilobytes < 100_000
    assert resource.getpagesize() <= 1 << 16


def test_text_is_tokenised_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MERISTEM_CACHE", str(tmp_path / "cache"))
    counted, original = [], token_cache._tokenised
    monkeypatch.setattr(token_cache, "_tokenised", lambda *a: counted.append(1) or original(*a))
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}.txt").write_text(f"document {number} " * 20)
    first, second = open_corpus(str(folder)), open_corpus(str(folder))
    assert len(counted) == 1
    assert first.fingerprint == second.fingerprint
    assert (first.documents, first.bytes) == (100, sum(f.stat().st_size for f in folder.iterdir()))
    assert np.array_equal(first.train, second.train)
    (folder / "0.txt").write_text("changed")
    assert open_corpus(str(folder)).fingerprint != first.fingerprint
    assert len(counted) == 2
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_text(file.read_text())
    assert open_corpus(str(copy)).fingerprint == open_corpus(str(folder)).fingerprint  # named by content
    assert not list((tmp_path / "cache" / "tokens").glob(".*"))


def test_a_tokenising_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MERISTEM_CACHE", str(tmp_path / "cache"))

    def texts():
        yield "one text"
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus_file, "_documents", lambda *_: ("a key", texts()))
    with pytest.raises(KeyboardInterrupt):
        open_corpus("anything")
    assert {path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()} <= {".lock"}


@pytest.mark.parametrize("examples", [1, 2, 3, 5, 17, 100, 1000, 4097])
def test_an_order_is_a_permutation_in_every_round(examples):
    order = Order(examples, seed=3)
    rounds = [[order.at(turn * examples + place) for place in range(examples)] for turn in range(3)]
    assert all(sorted(one) == list(range(examples)) for one in rounds)
    if examples > 10:
        assert rounds[0] != rounds[1]
        assert rounds[0] != [Order(examples, seed=4).at(place) for place in range(examples)]
    assert [Order(examples, 3, offset=1).at(place) for place in range(examples)] == [
        order.at(p + 1) for p in range(examples)
    ]


def test_all_orders_are_about_as_likely():
    found = {}
    for seed in range(2400):
        one = tuple(Order(4, seed).at(place) for place in range(4))
        found[one] = found.get(one, 0) + 1
    assert len(found) == 24
    assert all(50 < count < 160 for count in found.values())  # 100 expected, deviation 10


def test_a_recipes_data_are_described(tmp_path):
    from meristem.recipes.describe import describe_data
    from meristem.recipes.specs.data_specs import ImageSpec, TextSpec

    (tmp_path / "text.txt").write_text("é and more. " * 500)
    found = describe_data(TextSpec(source=str(tmp_path / "text.txt"), sequence_length=10))
    assert found["documents"] == "1"
    assert found["bytes of text"] == "6,500"
    assert found["bytes per token"] == "1.000"
    assert found["train, tokens"] == "5,850 (585 sequences)"
    assert found["tune, tokens"] == found["eval, tokens"] == "325 (32 sequences)"
    assert describe_data(ImageSpec(task="image-classification"))["tune, examples"] == "143"
