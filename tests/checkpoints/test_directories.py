"""Model directories: opened without trust, written whole or not at all."""

from __future__ import annotations

import json

import pico
import pytest

import meristem as ms
from meristem.checkpoints import open_model, write_model
from meristem.checkpoints.write import atomic_directory


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "small"
    pico.build("llama").save_pretrained(path)
    return path


def rewrite(path, **entries):
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_a_good_directory_opens(saved):
    assert open_model(str(saved)).config.hidden_size == 32


def test_not_a_model(tmp_path, saved):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ms.MeristemError, match=r"not a model directory: it has no config.json \(found: nothing\)"):
        open_model(str(tmp_path / "empty"))
    with pytest.raises(ms.MeristemError, match="is a file"):
        open_model(str(saved / "config.json"))
    with pytest.raises(ms.MeristemError, match="no such directory"):
        open_model(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("keep", [4, 100, 3000])
def test_a_truncated_file(saved, keep):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ms.MeristemError, match=r"model.safetensors is not a whole safetensors file"):
        open_model(str(saved))


def test_pickles_are_never_opened(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ms.MeristemError, match="a pickle, which Meristem never opens"):
        open_model(str(saved))


def test_remote_code_needs_trust(saved):
    rewrite(saved, auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(ms.MeristemError, match="--trust-remote-code"):
        open_model(str(saved))


CUSTOM = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_remote_code_runs_when_trusted(saved):
    (saved / "own.py").write_text(CUSTOM)
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    rewrite(saved, auto_map=auto_map, architectures=["OwnForCausalLM"], model_type="own_llama")
    with pytest.raises(ms.MeristemError, match="--trust-remote-code"):
        open_model(str(saved))
    model = open_model(str(saved), trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    assert ms.verify(model, ms.grow(model, ms.HyperCloning(width=2))).holds


@pytest.mark.parametrize("entries, message", [
    ({"num_hidden_layers": 5}, "tensors of LlamaForCausalLM are missing"),
    ({"architectures": ["NoSuchModel"]}, "has no model class NoSuchModel"),
    ({"architectures": None}, "names no architecture"),
    ({"model_type": "no-such-type"}, "not one that transformers understands"),
    ({"hidden_size": "wide"}, "not one that transformers understands"),
    ({"hidden_size": 64}, r"is \(67, 32\) in its files and \(67, 64\) by its config"),
])  # fmt: skip
def test_a_hostile_config(saved, entries, message):
    rewrite(saved, **entries)
    with pytest.raises(ms.MeristemError, match=message):
        open_model(str(saved))


def test_an_index_that_points_elsewhere(saved):
    (saved / "model.safetensors").rename(saved / "model-00001-of-00001.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ms.MeristemError, match="points outside its own directory"):
        open_model(str(saved))
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ms.MeristemError, match=r"names gone.safetensors, which does not exist"):
        open_model(str(saved))


def test_written_whole_with_its_record_and_tokenizer(saved, tmp_path):
    (saved / "tokenizer.json").write_text("{}")
    out = tmp_path / "out"
    write_model(pico.build("llama"), out, {"methods": [{"method": "x"}], "source": {"name": "s"}}, saved)
    assert json.loads((out / "meristem.json").read_text())["methods"] == [{"method": "x"}]
    assert (out / "tokenizer.json").read_text() == "{}"
    assert "library_name: transformers" in (out / "README.md").read_text()
    with pytest.raises(ms.MeristemError, match="exists; choose another place or pass --overwrite"):
        write_model(pico.build("llama"), out, {})
    write_model(pico.build("llama"), out, {}, overwrite=True)
    assert not list(tmp_path.glob(".*"))


def test_a_failure_inside_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out") as partial:
        (partial / "half").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error(tmp_path):
    with pytest.raises(ms.MeristemError, match="No space left on device"), atomic_directory(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
