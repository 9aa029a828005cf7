"""Output directories: whole or not at all, one writer at a time, and never at the cost of somebody else's files."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pico
import pytest

import meristem as ms
from meristem.checkpoints import directory, exchange
from meristem.checkpoints.directory import atomic_directory, check_place
from meristem.checkpoints.shares import clear_shares
from meristem.checkpoints.written import MANIFEST

SAVED = {
    "tokenizer_config.json": {"tokenizer_class": "TokenizersBackend"},
    "tokenizer.json": {"version": "1.0", "model": {"vocab": {}}},
    "special_tokens_map.json": {"bos_token": "<s>"},
    "preprocessor_config.json": {"image_processor_type": "ViTImageProcessor"},
}  # what stands in the files that tokenizers and processors save


def write(place: Path, content: str, overwrite: bool = False, **options) -> None:
    with atomic_directory(place, overwrite, **options) as partial:
        (partial / "config.json").write_text(content)
        (partial / "below").mkdir()
        (partial / "below" / "more.txt").write_text(content)


def read(place: Path) -> str:
    texts = {(place / "config.json").read_text(), (place / "below" / "more.txt").read_text()}
    assert len(texts) == 1  # the directory is one writer's
    return texts.pop()


def test_what_meristem_wrote_is_replaced(tmp_path):
    write(tmp_path / "out", "one")
    with pytest.raises(ms.MeristemError, match="exists; choose another place or pass --overwrite"):
        write(tmp_path / "out", "two")
    assert read(tmp_path / "out") == "one"
    write(tmp_path / "out", "two", overwrite=True)
    assert read(tmp_path / "out") == "two"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name", ["notes.txt", "below/mine.txt", ".git/HEAD", "checkpoint-5/model.safetensors", "run.py"]
)
def test_what_others_wrote_stops_it(tmp_path, name):
    write(tmp_path / "out", "one")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("months of work")
    with pytest.raises(ms.MeristemError, match=f"holds {name}, which neither Meristem nor save_pretrained wrote"):
        write(tmp_path / "out", "two", overwrite=True)
    assert (tmp_path / "out" / name).read_text() == "months of work"
    assert read(tmp_path / "out") == "one"
    assert os.listdir(tmp_path) == ["out"]


def test_what_comes_while_it_writes_stops_it_too(tmp_path):
    write(tmp_path / "out", "one")
    with pytest.raises(ms.MeristemError, match=r"holds notes.txt"), atomic_directory(tmp_path / "out", True):
        (tmp_path / "out" / "notes.txt").write_text("months of work")
    with pytest.raises(ms.MeristemError, match="exists"), atomic_directory(tmp_path / "new"):
        (tmp_path / "new").mkdir()
    assert sorted(os.listdir(tmp_path)) == ["new", "out"]


def test_a_directory_of_save_pretrained_is_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("a project of its own")  # no model yet
    with pytest.raises(ms.MeristemError, match=r"holds README.md"):
        write(out, "new", overwrite=True)
    (out / "README.md").unlink()
    pico.build("llama").save_pretrained(out, max_shard_size="20KB")
    for name, content in SAVED.items():
        (out / name).write_text(json.dumps(content))
    assert len(list(out.glob("model-*.safetensors"))) > 1
    write(out, "new", overwrite=True)
    assert read(out) == "new"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "new", overwrite=True)


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", '{"port": 8080}'),
        ("config.json", '{"model_type": "of my server"}'),
        ("README.md", "notes of a month"),
        ("tokenizer.json", '{"model": {}}'),
        ("vocab.txt", "typed by hand"),
        ("merges.txt", "a b"),
        ("chat_template.jinja", "mine"),
        ("tokenizer_config.json", "{}"),
        ("preprocessor_config.json", '{"steps": 5}'),
        ("generation_config.json", "[" * 100_000),
        ("model-best.safetensors", "trained for a week"),
        ("optimizer.pt", "of a run"),
        ("0.distcp", "of a run"),
        ("modeling_grouped.py", "print(1)"),
    ],
)
@pytest.mark.parametrize("ours", [True, False])
def test_a_name_that_save_pretrained_uses_makes_no_file_its_own(tmp_path, ours, name, content):
    """Beside what Meristem wrote, and beside what `save_pretrained` wrote."""
    out = tmp_path / "out"
    if ours:
        write(out, "one")
    else:
        pico.build("llama").save_pretrained(out)
    (out / name).write_text(content)
    with pytest.raises(
        ms.MeristemError, match=f"holds {re.escape(name)}, which (neither|Meristem has no record of|was changed since)"
    ):
        write(out, "new", overwrite=True)
    assert (out / name).read_text() == content


def test_a_file_changed_since_meristem_wrote_it_is_the_users(tmp_path):
    write(tmp_path / "out", "one")
    (tmp_path / "out" / "below" / "more.txt").write_text("one, and what I found since")
    with pytest.raises(ms.MeristemError, match=r"holds below/more.txt, which was changed since Meristem wrote it"):
        write(tmp_path / "out", "two", overwrite=True)
    (tmp_path / "out" / "below" / "more.txt").write_text("one")
    write(tmp_path / "out", "two", overwrite=True)
    assert read(tmp_path / "out") == "two"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_weights_and_configs_changed_since_are_the_users_too(tmp_path, name):
    """A fine-tune that was saved over a growth is the most expensive file there."""
    out = tmp_path / "out"
    with atomic_directory(out) as partial:
        pico.build("llama").save_pretrained(partial)
    other = pico.build("llama", seed=1)
    other.config.eos_token_id = 5
    other.save_pretrained(tmp_path / "tuned")
    tuned = (tmp_path / "tuned" / name).read_bytes()
    (out / name).write_bytes(tuned)
    with pytest.raises(ms.MeristemError, match=rf"holds {re.escape(name)}, which was changed since Meristem wrote it"):
        write(out, "two", overwrite=True)
    assert (out / name).read_bytes() == tuned


def test_a_large_file_is_known_by_parts_of_its_content(tmp_path):
    with atomic_directory(tmp_path / "out") as partial:
        (partial / "optimizer.pt").write_bytes(bytes(6_000_000))
    with atomic_directory(tmp_path / "out", overwrite=True) as partial:
        (partial / "optimizer.pt").write_bytes(bytes(6_000_000))
    for place in (0, 3_000_000, 5_999_999):
        changed = bytearray(6_000_000)
        changed[max(place - 200_000, 0) : place + 200_000] = b"1" * len(
            changed[max(place - 200_000, 0) : place + 200_000]
        )
        (tmp_path / "out" / "optimizer.pt").write_bytes(changed)
        with pytest.raises(ms.MeristemError, match=r"holds optimizer.pt, which was changed"):
            check_place(tmp_path / "out", overwrite=True)


def test_hidden_directories_of_the_users_beside_out_stay(tmp_path):
    for name in (".out.partial", ".out.partial-0123abcd", ".out.old", ".out.shares-mine", ".out1.shares-0123456789ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("mine")
    (tmp_path / ".out.lock").write_text("mine")
    before = sorted(os.listdir(tmp_path))
    write(tmp_path / "out", "one")
    clear_shares(tmp_path / "out")
    clear_shares(tmp_path / "out[1]")
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "out"])
    assert (tmp_path / ".out.lock").read_text() == (tmp_path / ".out.partial" / "notes").read_text() == "mine"


def test_out_is_not_the_source_nor_around_it(tmp_path, monkeypatch):
    write(tmp_path / "models" / "small", "source")
    (tmp_path / "link").symlink_to(tmp_path / "models")
    for out in (tmp_path / "models" / "small", tmp_path / "models", tmp_path, tmp_path / "link"):
        with pytest.raises(ms.MeristemError, match=r"(is|contains) the source"):
            write(out, "new", overwrite=True, sources=[tmp_path / "link" / "small"])
    monkeypatch.chdir(tmp_path / "models" / "small")
    for out in (".", "..", "/", "../small"):
        with pytest.raises(ms.MeristemError, match="is or contains the working directory"):
            write(Path(out), "new", overwrite=True)
    assert read(tmp_path / "models" / "small") == "source"


def test_out_may_lie_in_the_source(tmp_path):
    write(tmp_path / "small", "source")
    write(tmp_path / "small" / "grown", "new", sources=[tmp_path / "small"])
    write(tmp_path / "small" / "grown", "newer", overwrite=True, sources=[tmp_path / "small"])
    assert (read(tmp_path / "small"), read(tmp_path / "small" / "grown")) == ("source", "newer")
    assert sorted(os.listdir(tmp_path / "small")) == sorted(["grown", *os.listdir(tmp_path / "small" / "grown")])


def test_links_and_files(tmp_path):
    write(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "two", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real") == "two"
    (tmp_path / "ahead").symlink_to("later")
    write(tmp_path / "ahead", "three")
    assert read(tmp_path / "later") == "three"
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ms.MeristemError, match="is a file"):
        check_place(tmp_path / "file", overwrite=True)
    with pytest.raises(ms.MeristemError, match=r"would lie in .*file, which is a file"):
        write(tmp_path / "file" / "below", "four")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ms.MeristemError, match="cannot write"):
        write(tmp_path / "loop", "four")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_mount_point_is_refused_before_any_work(tmp_path, monkeypatch):
    """Its directory can be neither renamed nor exchanged."""
    write(tmp_path / "disk", "one")
    monkeypatch.setattr(directory.os.path, "ismount", lambda path: str(path) == str(tmp_path / "disk"))
    with pytest.raises(ms.MeristemError, match="is a mount point, which cannot be replaced"):
        check_place(tmp_path / "disk", overwrite=True)
    write(tmp_path / "disk" / "grown", "two")
    assert (read(tmp_path / "disk"), read(tmp_path / "disk" / "grown")) == ("one", "two")


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize(
    "failing", ["mkdir", "sync", "exchange", "first rename", "second rename", "removal", "manifest"]
)
def test_a_failure_at_any_step_loses_nothing(tmp_path, monkeypatch, failing, can_exchange):
    write(tmp_path / "out", "one")
    renames, failing_rename = [], {"first rename": 1, "second rename": 2}.get(failing)

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    def rename(source, target):
        renames.append((source, target))
        return fail() if len(renames) == failing_rename else os.replace(source, target)

    if not can_exchange:
        monkeypatch.setattr(directory, "exchange", lambda one, other: False)
    with monkeypatch.context() as patch:
        patch.setattr(directory.os, "rename", rename)
        if failing in ("sync", "exchange"):
            patch.setattr(directory, failing, fail)
        if failing == "mkdir":
            patch.setattr(directory, "_new_beside", fail)
        if failing == "manifest":
            patch.setattr(directory, "write_manifest", fail)
        if failing == "removal":
            patch.setattr(directory, "remove", lambda _: None)
        try:
            write(tmp_path / "out", "two", overwrite=True)
            written = True
        except ms.MeristemError as error:
            assert "Input/output error" in str(error)  # noqa: PT017
            written = False
    assert written == (failing == "removal" or (can_exchange and "rename" in failing))
    assert read(tmp_path / "out") == ("two" if written else "one")
    write(tmp_path / "out", "three", overwrite=True)
    assert read(tmp_path / "out") == "three"
    assert os.listdir(tmp_path) == ["out"]


def test_a_kill_between_two_renames_is_made_good(tmp_path):
    write(tmp_path / "out", "one")
    os.rename(tmp_path / "out", tmp_path / ".out.meristem-old")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "config.json").write_text("half")
    (tmp_path / ".out.partial" / MANIFEST).write_text("{}")
    with pytest.raises(ms.MeristemError, match="exists"):
        write(tmp_path / "out", "two")
    assert read(tmp_path / "out") == "one"
    os.rename(tmp_path / "out", tmp_path / ".out.meristem-old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert read(tmp_path / "out") == "one"
    (tmp_path / ".out.meristem-old").mkdir()
    (tmp_path / ".out.meristem-old" / "mine").write_text("of somebody who likes hidden names")
    write(tmp_path / "out", "two", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [".out.meristem-old", "out"]


@pytest.mark.parametrize("saved", [True, False])
def test_a_kill_while_the_old_one_is_removed_is_made_good(tmp_path, monkeypatch, saved):
    if saved:
        pico.build("llama").save_pretrained(tmp_path / "out")
    else:
        write(tmp_path / "out", "one")
    unlink = Path.unlink

    def kill(path, *args, **kwargs):
        if path.parent.name == "out" or path.name == ".out.lock":
            return unlink(path, *args, **kwargs)
        unlink(path)
        raise KeyboardInterrupt  # one file is gone, the others lie there

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", kill)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out", "two", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [".out.partial", "out"]
    assert read(tmp_path / "out") == "two"
    write(tmp_path / "out", "three", overwrite=True)
    assert (os.listdir(tmp_path), read(tmp_path / "out")) == (["out"], "three")


def test_two_writers(tmp_path):
    """The second is told so, at once; when the first ends it may write."""
    code = f"""
from pathlib import Path
from meristem.checkpoints.directory import atomic_directory
from meristem.errors import MeristemError
try:
    with atomic_directory(Path({str(tmp_path / "out")!r}), overwrite=True): pass
except MeristemError as error: print(error)
"""
    with atomic_directory(tmp_path / "out") as partial:
        (partial / "config.json").write_text("one")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "is being written by another process" in done.stdout
        assert (partial / "config.json").read_text() == "one"
    assert (tmp_path / "out" / "config.json").read_text() == "one"
    with atomic_directory(tmp_path / "out", overwrite=True):
        pass
    assert os.listdir(tmp_path / "out") == [MANIFEST]
    assert os.listdir(tmp_path) == ["out"]


def test_without_locks_names_keep_writers_apart(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(exchange.fcntl, "flock", unsupported)
    monkeypatch.setattr(directory, "_clear_remains", lambda place: None)  # on another machine, a little earlier
    with atomic_directory(tmp_path / "out", overwrite=True) as one, atomic_directory(tmp_path / "out", True) as other:
        assert one != other
        (one / "config.json").write_text("one")
        (other / "config.json").write_text("other")
    assert (tmp_path / "out" / "config.json").read_text() == "one"  # the last to end
    assert os.listdir(tmp_path) == ["out"]


def test_parents_that_were_made_for_nothing_go(tmp_path):
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "a" / "b" / "out"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    write(tmp_path / "a" / "b" / "out", "one")
    assert read(tmp_path / "a" / "b" / "out") == "one"


@pytest.mark.skipif(sys.platform != "linux", reason="exchanged in one step on Linux")
def test_the_exchange_is_one_step(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    if not exchange.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot")
    assert (tmp_path / "one" / "name").read_text() == "other"
    assert (tmp_path / "other" / "name").read_text() == "one"
    with pytest.raises(FileNotFoundError):
        exchange.exchange(tmp_path / "one", tmp_path / "nowhere")
