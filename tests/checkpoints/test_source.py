"""What a user names: directories, files, hub names, mistakes. One sentence each, which says what to do."""

from __future__ import annotations

import json
import os
import shutil

import pico
import pytest
from command_line import here, meristem

import meristem as ms
from meristem.checkpoints import open_model, open_streamed, write_model
from meristem.checkpoints.open import local_directory
from meristem.checkpoints.record import growth_record, source_record
from meristem.checkpoints.source import find_source
from meristem.growth import Growth

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    pico.build("llama").save_pretrained(path)
    return path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub cache; `hub(name, directory)` puts a model in it, as downloading it would have."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name, directory):
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(directory, folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
        return folder / "snapshots" / COMMIT

    return put


def with_entries(source, target, **entries):
    shutil.copytree(source, target)
    config = target / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **entries}))
    return target


def test_a_hub_name_is_its_snapshot(small, hub, tmp_path):
    snapshot = hub("acme/llama", small)
    (snapshot / "tokenizer.json").write_text("{}")
    source = find_source("acme/llama")
    assert (source.name, source.path, source.revision) == ("acme/llama", snapshot, COMMIT)
    assert local_directory("acme/llama") == snapshot
    growth = Growth.of(open_streamed(source), ms.HyperCloning(width=2), verify=False)
    record = growth_record(growth, source)
    write_model(growth.model, tmp_path / "out", record, source.path)
    assert record["source"] == {"name": "acme/llama", "revision": COMMIT, "sha256": source_record(str(small))["sha256"]}
    assert "base_model:\n- acme/llama" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize("entries, words", [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"acme/bad is quantised \(quantization_config in"),
    ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, r"is quantised \(text_config.quantization_config in"),
    ({"auto_map": {"AutoConfig": "configuration_x.X"}}, "acme/bad contains its own code .*--trust-remote-code"),
])  # fmt: skip
def test_a_hub_name_is_judged_before_its_weights_are_fetched(small, hub, tmp_path, monkeypatch, entries, words):
    import huggingface_hub

    snapshot = hub("acme/bad", with_entries(small, tmp_path / "bad", **entries))
    fetched = []

    def download(name, **options):
        fetched.append(options.get("allow_patterns"))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for opener in (open_model, open_streamed, find_source, local_directory):
        with pytest.raises(ms.MeristemError, match=words):
            opener("acme/bad")
    assert fetched == [["config.json", "adapter_config.json"]] * 4


def test_mistyped_names(small, hub, tmp_path):
    shutil.copytree(small, tmp_path / "beside" / "models" / "small")
    small = tmp_path / "beside" / "models" / "small"
    parent = small.parent
    with pytest.raises(ms.MeristemError, match=rf"smal: no such directory \(did you mean {small}\?\)"):
        open_model(str(parent / "smal"))
    here = os.getcwd()
    os.chdir(parent.parent)
    try:
        with pytest.raises(
            ms.MeristemError,
            match="no-such-owner/no-such-model: no such directory here, and the hub's cache has no model of that name, and HF_HUB_OFFLINE",
        ):
            open_model("no-such-owner/no-such-model")
        close = {
            f"{parent.name}/smal": f"{parent.name}/small",
            f"{parent.name[:-2]}/small": f"{parent.name}/small",
            f"{parent.name[:-2]}/smal/": f"{parent.name}/small",
            f"{parent.name}/small/ckpt": None,
            "small": f"{parent.name}/small",
        }
        for name, meant in close.items():
            with pytest.raises(ms.MeristemError) as said:
                open_streamed(name)
            assert str(said.value).startswith(f"{name}: no such directory")
            assert (f"did you mean {meant}?" if meant else "directory here") in str(said.value)
    finally:
        os.chdir(here)
    for name in ("x" * 5000, "a\0b", "a b/c", "../nowhere"):
        with pytest.raises(ms.MeristemError, match=r"no such directory|cannot be read"):
            open_model(name)


@pytest.mark.parametrize("file, words", [
    ("consolidated.safetensors", r"has no model.safetensors \(it has consolidated.safetensors, Mistral's own layout\); use the tran"),
    ("model.fp16.safetensors", r"it has model.fp16.safetensors, a variant of the weights\); load it with from_pretrained\(..., var"),
    ("llama.safetensors", r"it has llama.safetensors, weights under another name\); rename it"),
    ("pytorch_model.bin", r"a pickle, which Meristem never opens\); load it with from_pretrained and save it again"),
    ("pytorch_model-00001-of-00002.bin", "a pickle, which Meristem never opens"),
    ("model-Q4_K_M.gguf", "a GGUF file, whose weights are quantised as a rule"),
    ("consolidated.00.pth", "a pickle, which Meristem never opens"),
    ("tf_model.h5", "TensorFlow's weights"),
    ("flax_model.msgpack", "Flax weights"),
])  # fmt: skip
def test_weights_under_other_names(small, tmp_path, file, words):
    shutil.copytree(small, tmp_path / "small")
    (tmp_path / "small" / "model.safetensors").rename(tmp_path / "small" / file)
    for opener in (open_model, open_streamed):
        with pytest.raises(ms.MeristemError, match=words):
            opener(str(tmp_path / "small"))
    with pytest.raises(ms.MeristemError, match=r"is a file( \(|;)"):
        open_model(str(tmp_path / "small" / file))


def test_directories_that_are_no_model(small, tmp_path):
    for path, content in {
        "empty": {},
        "run": {"checkpoint-5/config.json": "{}"},
        "pipeline": {"model_index.json": "{}", "unet/config.json": "{}"},
        "adapter": {"adapter_config.json": "{}", "adapter_model.safetensors": ""},
        "gguf": {"llama.gguf": ""},
    }.items():
        (tmp_path / path).mkdir()
        for name, text in content.items():
            (tmp_path / path / name).parent.mkdir(exist_ok=True)
            (tmp_path / path / name).write_text(text)
    for path, words in (
        ("empty", r"no config.json \(found: nothing\)"),
        ("run", "did you mean .*/run/checkpoint-5"),
        ("pipeline", "a diffusers pipeline of unet: name one part"),
        ("adapter", "is a PEFT adapter, not a model; merge it into its base model first"),
        ("gguf", "it holds a GGUF file"),
    ):
        with pytest.raises(ms.MeristemError, match=words):
            open_model(str(tmp_path / path))
    beside = with_entries(small, tmp_path / "beside")
    (beside / "adapter_config.json").write_text("{}")
    with pytest.raises(ms.MeristemError, match="holds a PEFT adapter"):
        open_streamed(str(beside))


def test_what_cannot_be_read(small, tmp_path):
    """As nobody, since root reads everything."""
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents:
        if folder != folder.parent and folder.owner() == "root" and folder.name.startswith(("pytest", "popen")):
            folder.chmod(0o755)
    source = tmp_path / "small"
    shutil.copytree(small, source)
    open_model(str(source))  # imports what has to be imported
    root = os.geteuid() == 0
    for path in (source, source / "config.json", source / "model.safetensors"):
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            if root:
                os.seteuid(65534)
            for opener in (open_model, open_streamed, source_record):
                if opener is source_record and path == source / "config.json":
                    continue
                with pytest.raises(ms.MeristemError, match="cannot be read: Permission denied"):
                    opener(str(source))
        finally:
            if root:
                os.seteuid(0)
            path.chmod(mode)


def test_the_command_line_says_the_same(small, tmp_path):
    done = meristem("grow", str(small) + "l", tmp_path / "out", "--width", 2)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "did you mean" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error, words", [
    ("GatedRepoError", r"it is gated: accept its terms at https://huggingface.co/acme/llama and log in"),
    ("RepositoryNotFoundError", r"the hub has no public model of that name \(to a private one, log in"),
    ("IncompleteSnapshotError", r"the hub's cache holds only a part of it"),
    (None, r"it could not be fetched from the hub: connection refused"),
])  # fmt: skip
def test_why_a_hub_name_leads_to_nothing(monkeypatch, tmp_path, error, words):
    import huggingface_hub
    from huggingface_hub import errors

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    kind = getattr(errors, error) if error else ConnectionError
    raised = kind.__new__(kind)
    Exception.__init__(raised, "connection refused")

    def refuse(*_, **__):
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ms.MeristemError, match=f"acme/llama: no such directory here, and {words}|on the hub {words}"):
        find_source("acme/llama")


def test_only_models_of_the_hub_have_revisions(small, monkeypatch):
    monkeypatch.chdir(small.parent)
    with pytest.raises(ms.MeristemError, match=r"small@main: small is a directory, and only hub models have revisions"):
        find_source("small@main")
    with pytest.raises(ms.MeristemError, match=r"no such directory .*, and it is not a hub name"):
        ms.load_certificate("a b/c")


@pytest.mark.parametrize("change", ["weights", "config", "more"])
def test_a_source_that_changes_while_it_is_read_is_refused(change, tmp_path, monkeypatch):
    """Another run saves over it: half of what was made would be of the old weights, half of the new."""
    from meristem.checkpoints import write

    small = tmp_path / "small"
    pico.build("llama").save_pretrained(small)
    index = write.write_index

    def meanwhile(*arguments):
        if change == "weights":
            pico.build("llama", seed=1).save_pretrained(tmp_path / "later")
            shutil.copy(tmp_path / "later" / "model.safetensors", small)
        elif change == "config":
            (small / "config.json").write_text((small / "config.json").read_text() + " ")
        else:
            (small / "model-2.safetensors").write_bytes((small / "model.safetensors").read_bytes())
        index(*arguments)

    (small / "lost.txt").symlink_to(tmp_path / "nowhere")
    (small / "notes.txt").write_text("a")
    assert here("grow", small, tmp_path / "one", "--width", "2") == 0
    monkeypatch.setattr(write, "write_index", meanwhile)
    name = {"weights": "model", "config": "config", "more": "model-2"}[change]
    with pytest.raises(ms.MeristemError, match=rf"{name}\.\w+ changed while it was read"):
        here("grow", small, tmp_path / "out", "--width", "2")
    assert not (tmp_path / "out").exists()
