"""A stranger's model directory, and one by name on the hub: no command runs what lies in it, nor reads, copies or writes outside of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pico
import pytest
import torch
import transformers
from hostile import Canary, Site, commands, invoke, watched

import meristem as ms
from meristem.checkpoints import open_model, open_streamed
from meristem.checkpoints.distributed import open_distributed
from meristem.data.encoding import open_encoding
from meristem.growth.sizes.target_config import read_target

WRITING = ("grow", "stack", "shrink", "fuse", "average")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "llama"
    pico.build("llama").save_pretrained(path)
    return path


@pytest.fixture
def site(llama, tmp_path, monkeypatch):
    site = Site(tmp_path, llama)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(site.hub))
    monkeypatch.chdir(tmp_path)
    return site


def judged(site, source, names, code):
    """What the commands say, by name; none runs, opens or writes what it may not."""
    said = {}
    for name in names:
        shutil.rmtree(site.out, ignore_errors=True)
        with watched(site.outside) as opened:
            got, said[name] = invoke(commands(source, site.out, site.room / "recipe.yaml")[name])
        assert got == code, (name, said[name])
        assert not opened, name
        site.unharmed()
        if code:
            assert not site.out.exists() or name == "run", name
        elif name in WRITING:
            transformers.AutoModelForCausalLM.from_pretrained(site.out)  # as any user would
            site.unharmed()
    return said


EVERY = ("inspect", "plan", "verify", *WRITING, "run")
OTHER = {"AutoConfig": "other/repo--evil.X", "AutoModelForCausalLM": "other/repo--evil.Y"}


def test_a_native_model_that_names_anothers_code(site):
    site.rewrite(auto_map=OTHER)
    for name, said in judged(site, str(site.path), EVERY, 2).items():
        assert all(words in said for words in ("contains its own code", "--trust-remote-code")), name


def test_the_same_by_its_name_on_the_hub(site, llama):
    site.rewrite(auto_map=OTHER)
    site.on_hub("acme/model", site.path, "b" * 40)
    for name, said in judged(site, "acme/model", EVERY, 2).items():
        assert "acme/model contains its own code" in said, name
    for opener in (open_model, open_streamed, open_distributed):
        with pytest.raises(ms.MeristemError, match="acme/model contains its own code"):
            opener("acme/model")
    site.unharmed()


def test_a_model_of_the_hub_whose_code_lies_about(site):
    snapshot = site.on_hub("acme/model", site.path, "b" * 40)
    site.rewrite("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
    judged(site, "acme/model", ("grow", "average"), 0)
    shutil.rmtree(site.out)
    invoke(commands("acme/model", site.out, site.room / "recipe.yaml")["grow"])
    source = json.loads((site.out / "meristem.json").read_text())["source"]
    assert (source["name"], source["revision"]) == ("acme/model", "b" * 40)
    digest = hashlib.sha256()
    for file in ("config.json", "model.safetensors"):
        digest.update(file.encode() + (snapshot / file).read_bytes())
    assert source["sha256"] == digest.hexdigest()


def test_a_recipe_records_where_its_checkpoint_is_from(site):
    site.on_hub("acme/model", site.path, "b" * 40)
    judged(site, "acme/model", ("run",), 0)
    (start,) = site.out.glob("start-*")
    source = json.loads((start / "model" / "meristem.json").read_text())["source"]
    assert (source["name"], source["revision"]) == ("acme/model", "b" * 40)
    assert "base_model:\n- acme/model" in (start / "model" / "README.md").read_text()
    (grown,) = site.out.glob("grown-*")
    assert "evil.py" in json.loads((start / "node.json").read_text())["details"]["left_behind"]
    assert (
        "base_model:\n- acme/model" in (grown / "model" / "README.md").read_text()
    )  # what it was grown from is from there


def test_a_directory_is_no_model_of_the_hub(site):
    (site.room / "models").mkdir()
    site.path.rename(site.room / "models" / "small")
    code, said = invoke(commands("models/small", site.out, site.room / "recipe.yaml")["grow"])
    assert code == 0, said
    assert "base_model" not in (site.out / "README.md").read_text()


BESIDE = {
    "its generation": lambda s: (s.rewrite("generation_config.json", custom_generate="other/repo", auto_map=OTHER),
                                 s.rewrite(custom_generate="other/repo")),
    "its tokenizer": lambda s: s.rewrite("tokenizer_config.json", tokenizer_class="X",
                                         auto_map={"AutoTokenizer": ["tokenization_x.X", "other/repo--evil.Y"]}),
    "its processors": lambda s: [
        s.rewrite(file, auto_map={"AutoProcessor": "processing_x.P", "AutoImageProcessor": "other/repo--evil.Y"})
        for file in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
    ],
    "pickles beside": lambda s: s.pickled("pytorch_model.bin", "optimizer.pt", "training_args.bin", "scheduler.pt",
                                          "rng_state.pth", "model.pkl"),
    "a template": lambda s: (s.path / "chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.popen('touch " + str(s.ran) + "') }}{% include '../outside/secret.txt' %}"),
    "names of elsewhere": lambda s: s.rewrite(_name_or_path="other/repo", transformers_weights="../outside/model.safetensors"),
    "a record": lambda s: s.rewrite("meristem.json", build="evil:build", methods=[{"method": "evil"}], provenance={"x": 1}),
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_the_weights_is_not_run(site, kind):
    BESIDE[kind](site)
    judged(site, str(site.path), ("inspect", "grow", "fuse"), 0)


def test_an_optimizer_that_is_a_program(site):
    (site.path / "trainer_state.json").write_text("{}")
    site.pickled("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
    for name, said in judged(site, str(site.path), ("grow", "shrink"), 2).items():
        assert "optimizer.pt is not an optimizer's state that can be read without running" in said, name
    torch.save({"state": {0: Canary(site.ran)}, "param_groups": []}, site.path / "optimizer.pt")
    judged(site, str(site.path), ("grow",), 2)
    for wrong in ({"state": {}, "param_groups": []}, {"state": [1], "param_groups": [{"params": [0]}]}, [1], 3):
        torch.save(wrong, site.path / "optimizer.pt")
        assert "optimizer.pt" in judged(site, str(site.path), ("grow",), 2)["grow"]
    code, said = invoke([*commands(str(site.path), site.out, site.room / "r.yaml")["grow"], "--drop", "optimizer.pt"])
    assert code == 0, said
    site.unharmed()


def test_an_index_of_shards_that_points_outside(site):
    (site.path / "model.safetensors").unlink()
    index = site.path / "model.safetensors.index.json"
    for place in (
        "../outside/model.safetensors",
        str(site.outside / "model.safetensors"),
        "a/../../outside/model.safetensors",
    ):
        index.write_text(json.dumps({"weight_map": {"secret": place}}))
        assert "points outside" in judged(site, str(site.path), ("grow",), 2)["grow"]


def test_links_out_of_the_directory_are_not_followed(site):
    secret = "../outside/secret.txt"
    (site.path / "notes.txt").symlink_to(secret)
    (site.path / "tokenizer_config.json").symlink_to(site.outside / "secret.json")
    (site.path / "folder").symlink_to("../outside")
    (site.path / "assets").mkdir()
    (site.path / "assets" / "a.txt").symlink_to("../" + secret)
    (site.path / "vocab.txt").symlink_to("/dev/zero")
    (site.path / "dangling.txt").symlink_to("nowhere")
    (site.path / "loop.txt").symlink_to("loop.txt")
    (site.path / "real.txt").write_text("here")
    (site.path / "inside.txt").symlink_to("real.txt")
    os.mkfifo(site.path / "tokenizer.json")
    said = judged(site, str(site.path), ("grow", "fuse"), 0)
    for name in (
        "notes.txt",
        "tokenizer_config.json",
        "folder/",
        "assets/a.txt",
        "vocab.txt",
        "dangling.txt",
        "loop.txt",
    ):
        assert name in said["grow"], name
        assert not (site.out / name).exists(), name
    assert (site.out / "inside.txt").read_text() == "here"


def test_a_generation_config_that_is_such_a_link(site):
    (site.path / "generation_config.json").unlink(missing_ok=True)
    (site.path / "generation_config.json").symlink_to("../outside/secret.json")
    assert "is a link out of" in judged(site, str(site.path), ("grow",), 2)["grow"]


def test_a_trainers_files_that_are_such_links(site, llama):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    optimizer = torch.optim.AdamW([
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ])  # fmt: skip
    model(torch.arange(3, 9)[None]).logits.square().sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), site.path / "optimizer.pt")
    (site.path / "trainer_state.json").write_text("{}")
    (site.path / "training_args.bin").symlink_to("../outside/secret.txt")
    (site.path / "scheduler.pt").symlink_to("../outside/secret.txt")
    judged(site, str(site.path), ("grow",), 0)
    assert (site.out / "optimizer.pt").exists()
    assert not (site.out / "training_args.bin").exists()


def test_a_directory_of_links_to_a_model_is_that_model(site, llama):
    """As the hub's cache is, or a folder that a user made: the weights and their config may lie anywhere."""
    farm = site.room / "farm"
    farm.mkdir()
    (llama / "tokenizer_config.json").write_text("{}")
    for file in llama.iterdir():
        (farm / file.name).symlink_to(file)
    judged(site, str(farm), ("grow",), 0)
    assert (site.out / "tokenizer_config.json").read_text() == "{}"
    weights = site.room / "disk.safetensors"
    shutil.move(site.path / "model.safetensors", weights)
    (site.path / "model.safetensors").symlink_to(weights)
    judged(site, str(site.path), ("grow",), 0)


@pytest.mark.parametrize("entries", [
    {"auto_map": OTHER}, {"attn_implementation": "other/repo"}, {"_attn_implementation": "other/repo:evil"},
    {"experts_implementation": "other/repo"},
])  # fmt: skip
@pytest.mark.parametrize("by_name", [False, True])
def test_a_target_says_sizes_and_nothing_else(site, llama, entries, by_name):
    site.rewrite(hidden_size=64, **entries)
    target = str(site.path)
    if by_name:
        site.on_hub("acme/target", site.path, "b" * 40)
        target = "acme/target"
    config = read_target(target)
    assert type(config) is transformers.LlamaConfig
    assert config.hidden_size == 64
    with watched(site.outside) as opened:
        code, said = invoke(["grow", str(llama), str(site.out), "--like", target, "--no-verify"])
    assert code == 0, said
    written = json.loads((site.out / "config.json").read_text())
    assert written["hidden_size"] == 64
    assert "other/repo" not in json.dumps(written)
    assert not opened
    site.unharmed()


@pytest.mark.parametrize("reference", ["tokenization_x.X", "other/repo--evil.Y"])
def test_a_recipes_tokenizer_runs_nothing(site, reference):
    site.rewrite("tokenizer_config.json", tokenizer_class="X", auto_map={"AutoTokenizer": [reference, None]})
    with pytest.raises(ms.MeristemError, match="cannot be loaded"):
        open_encoding(str(site.path))
    site.unharmed()


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
from .parts import SCALE

class OwnConfig(LlamaConfig):
    model_type = "own_of_{tag}"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * SCALE
        return out
"""


def test_trusted_code_of_another_repository_comes_along(site, llama):
    """OUT stands alone: its class is beside it, whatever becomes of the repository that had it."""
    shutil.rmtree(site.path / "custom_generate")
    other = site.on_hub("acme/code", commit="c" * 40)
    (other / "own.py").write_text(CODE.format(tag="elsewhere"))
    (other / "parts.py").write_text("SCALE = 3.0\n")
    named = {"AutoConfig": "acme/code--own.OwnConfig", "AutoModelForCausalLM": "acme/code--own.OwnForCausalLM"}
    site.rewrite(auto_map=named, architectures=["OwnForCausalLM"], model_type="own_of_elsewhere")
    code, said = invoke([
        *commands(str(site.path), site.out, site.room / "r.yaml")["grow"], "--trust-remote-code",
    ])  # fmt: skip
    assert code == 0, said
    shutil.rmtree(site.hub)
    again = transformers.AutoModelForCausalLM.from_pretrained(site.out, trust_remote_code=True).eval()
    stock = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    ids = torch.randint(3, 67, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, 3 * stock(ids).logits, atol=1e-4, rtol=1e-4)
    assert json.loads((site.out / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnForCausalLM",
    }


BY_CONFIG = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
}
GATE = "model.layers.0.mlp.gate_proj"


def packed(*names, dtype=torch.int32):
    """The weight of one layer gives way to these."""
    return lambda tensors: (
        {n: t for n, t in tensors.items() if n != f"{GATE}.weight"}
        | {f"{GATE}.{name}": torch.ones(44, 4, dtype=dtype) for name in names}
    )


def besides(dtype, *names):
    return lambda tensors: (
        {**tensors, f"{GATE}.weight": torch.ones(44, 32).to(dtype)}
        | {f"{GATE}.{name}": torch.ones(44) for name in names}
    )


BY_TENSORS = {
    "bitsandbytes, 4 bits": lambda tensors: {
        **packed("weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4")(tensors),
        f"{GATE}.weight": torch.ones(704, 1, dtype=torch.uint8),
    },
    "bitsandbytes, 8 bits": besides(torch.int8, "SCB"),
    "int8 alone": besides(torch.int8),
    "gptq": packed("qweight", "qzeros", "scales", "g_idx"),
    "awq": packed("qweight", "qzeros", "scales"),
    "fp8": besides(torch.float8_e4m3fn, "weight_scale_inv"),
    "fp8, its scales only": besides(torch.float32, "weight_scale"),
    "mxfp4": packed("weight_blocks", "weight_scales", dtype=torch.uint8),
    "compressed-tensors": packed("weight_packed", "weight_scale", "weight_shape"),
}


@pytest.mark.parametrize("kind", [*BY_CONFIG, *BY_TENSORS])
def test_what_is_quantised_gets_one_sentence_before_any_bytes(site, kind):
    if kind in BY_CONFIG:
        site.rewrite(quantization_config=BY_CONFIG[kind])
    else:
        site.weights(BY_TENSORS[kind])
    for name, said in judged(site, str(site.path), ("inspect", "plan", "verify", *WRITING), 2).items():
        assert all(words in said for words in ("quantised", "original weights")), (name, said)
        assert "--drop" not in said, name


def test_adapters_get_one_sentence(site):
    site.rewrite("adapter_config.json", peft_type="LORA", base_model_name_or_path="other/repo")
    for name, said in judged(site, str(site.path), EVERY, 2).items():
        assert all(words in said for words in ("PEFT adapter", "merge_and_unload")), name
    for file in ("config.json", "model.safetensors"):
        (site.path / file).unlink()
    assert "PEFT adapter" in judged(site, str(site.path), ("grow",), 2)["grow"]
