"""Hostile model directories: whatever opens them, nothing of theirs is run unless the user says so, and nothing is passed on."""

from __future__ import annotations

import json
import shutil

import pico
import pytest
import torch
import transformers
from command_line import here, meristem

import meristem as ms
from meristem.checkpoints import open_model, open_streamed, write_model
from meristem.checkpoints.distributed import open_distributed
from meristem.checkpoints.source import find_source
from meristem.growth.fuse import fuse_with_certificate

REFUSED = {
    "its own config": {"auto_map": {"AutoConfig": "evil.Config"}},
    "its own model": {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "architectures": ["Model"]},
    "another repository's config": {"auto_map": {"AutoConfig": "other/repo--evil.Config"}},
    "code in a part": {"text_config": {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "llama"}},
    "code in a list": {"parts": [{"auto_map": {"AutoModel": "evil.Model"}}]},
    "a kernel": {"attn_implementation": "evil/kernel"},
    "a kernel under its private name": {"_attn_implementation": "evil/kernel"},
    "a kernel for a part": {"attn_implementation": {"text_config": "evil/kernel"}},
    "a kernel for experts": {"experts_implementation": "evil/kernel:experts"},
    "another config file": {"configuration_files": ["config.4.0.0.json"]},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "llama"
    pico.build("llama").save_pretrained(path)
    return path


@pytest.fixture
def hostile(llama, tmp_path, monkeypatch):
    """A directory full of code that leaves a file behind when it runs, and one of that name on the hub."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--other--repo" / "snapshots" / ("a" * 40)
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    path = tmp_path / "hostile"
    shutil.copytree(llama, path)
    for folder in (path, path / "custom_generate", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("evil.py", "generate.py", "modeling_grouped.py", "tokenization_x.py", "build.py"):
            (folder / name).write_text(code)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    (path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}))
    (path / "config.4.0.0.json").write_text(
        json.dumps({**json.loads((path / "config.json").read_text()), "auto_map": {"AutoConfig": "evil.Config"}})
    )
    return path


def rewrite(path, **entries):
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize("kind", REFUSED)
def test_nothing_runs(hostile, tmp_path, kind):
    rewrite(hostile, **REFUSED[kind])
    name, out = str(hostile), tmp_path / "out"
    for opener in (
        open_model,
        open_streamed,
        open_distributed,
        lambda name: here("inspect", name),
        lambda name: here("verify", name, name),
        lambda name: here("plan", name, "--width", 2, "--tokens", "1M"),
        lambda name: here("grow", name, out, "--width", 2),
        lambda name: here("fuse", name, name, out),
    ):
        with pytest.raises(ms.MeristemError, match="--trust-remote-code"):
            opener(name)
    assert not (tmp_path / "ran").exists()
    assert not out.exists()


def test_code_that_lies_about_is_neither_run_nor_copied(hostile, tmp_path):
    assert here("grow", hostile, tmp_path / "out", "--width", 2) == 0
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "out").rglob("*.py"))
    assert ms.verify(open_model(str(hostile)), open_model(str(tmp_path / "out"))).holds


def test_grouped_norms_name_their_own_code_only(hostile, tmp_path):
    fusion = fuse_with_certificate([open_model(str(hostile))] * 2, ms.DeepFusion(norm="grouped"), verify=False)
    write_model(fusion.model, tmp_path / "grouped", {})
    own = json.loads((tmp_path / "grouped" / "config.json").read_text())["auto_map"]
    rewrite(tmp_path / "grouped", auto_map={"AutoConfig": "other/repo--evil.Config", "AutoModelForCausalLM": "evil.M"})
    again = ms.grow(open_streamed(str(tmp_path / "grouped")), ms.Stacking(depth=2))
    write_model(again, tmp_path / "out", {}, tmp_path / "grouped")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"] == own
    assert all(reference.startswith("modeling_grouped.Grouped") for reference in own.values())
    assert not (tmp_path / "ran").exists()


CUSTOM = """
from transformers import LlamaConfig, LlamaForCausalLM
from .parts import SCALE

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * SCALE
        return out
"""


def test_what_is_trusted_is_written_with_its_code(llama, tmp_path, monkeypatch):
    small, out = tmp_path / "small", tmp_path / "big"
    shutil.copytree(llama, small)
    (small / "own.py").write_text(CUSTOM)
    (small / "parts.py").write_text("SCALE = 3.0\n")
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    rewrite(small, auto_map=auto_map, architectures=["OwnForCausalLM"], model_type="own_llama")
    done = meristem("grow", small, out, "--width", 2, "--trust-remote-code")
    assert done.returncode == 0, done.stderr
    assert "certificate" in done.stdout
    assert json.loads((out / "config.json").read_text())["auto_map"] == auto_map
    assert (out / "own.py").read_text() == CUSTOM
    before, after = (
        transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval() for path in (small, out)
    )
    ids = torch.randint(3, 67, (2, 9), generator=torch.Generator().manual_seed(0))
    stock = transformers.LlamaForCausalLM.from_pretrained(llama).eval()
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, before(ids).logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(after(ids).logits, 3 * stock(ids).logits, atol=1e-5, rtol=1e-4)
    write_model(
        open_model(str(out), trust_remote_code=True), tmp_path / "again", {}, out
    )  # its class's code comes along
    assert (tmp_path / "again" / "own.py").exists()
    with pytest.raises(ms.MeristemError, match="--trust-remote-code"):
        open_model(str(out))


def test_code_is_dropped_where_the_class_is_transformers_own(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "small")
    rewrite(tmp_path / "small", auto_map={"AutoModelForCausalLM": "gone.Model"})
    model = open_model(str(tmp_path / "small"), trust_remote_code=True)
    assert type(model) is transformers.LlamaForCausalLM
    write_model(model, tmp_path / "out", {})
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert find_source(str(tmp_path / "out")).revision is None
