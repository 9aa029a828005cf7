"""What a source holds is in the result or named in an error: tensors without a place, files beside the weights, generation entries."""

from __future__ import annotations

import json
import shutil

import pico
import pytest
import torch
import transformers
from command_line import meristem
from safetensors.torch import load_file, save_file

import meristem as ms
from meristem.checkpoints import open_model, open_streamed, write_model
from meristem.checkpoints.companions import companions
from meristem.checkpoints.stored import StoredTensors


@pytest.fixture
def saved(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def add(path, **tensors):
    file = path / "model.safetensors"
    save_file({**load_file(file), **{k.replace("__", "."): v for k, v in tensors.items()}}, file, {"format": "pt"})


LOST = {
    "a value head": ("value_head__weight", (1, 32), "value_head.weight"),
    "a bias of the head": ("lm_head__bias", (67,), "lm_head.bias"),
    "one more layer": ("model__layers__2__mlp__up_proj__weight", (44, 32), "model.layers.2.mlp.up_proj.weight"),
    "multi-token prediction": ("mtp__fc__weight", (32, 64), "mtp.fc.weight"),
    "a norm inside of a layer": ("model__layers__0__self_attn__q_norm__weight", (8,), "model.layers.0.self_attn.q_norm.weight"),
    "an adapter": ("model__layers__0__mlp__up_proj__lora_A__weight", (2, 32), "model.layers.0.mlp.up_proj.lora_A.weight"),
}  # fmt: skip


def test_kernels_in_the_files_are_recognised_and_the_advice_works(saved, tmp_path):
    kernels = ms.majority(transformers.AutoModelForCausalLM.from_pretrained(saved), kernels=2, start="clone")
    shutil.copytree(saved, tmp_path / "run")
    save_file(kernels.state_dict(), tmp_path / "run" / "model.safetensors", {"format": "pt"})
    for more in ([], ["--drop", "model.layers.*"]):
        done = meristem("grow", tmp_path / "run", tmp_path / "big", "--width", 2, *more)
        assert done.returncode == 2
        assert "2 kernels for each of 14 weights" in done.stderr
        assert "ms.majority(model, kernels=2)" in done.stderr
    fresh = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(saved))
    again = ms.majority(fresh, kernels=2)
    again.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"), strict=False)
    ms.deploy(again).save_pretrained(tmp_path / "deployed")
    assert meristem("grow", tmp_path / "deployed", tmp_path / "big", "--width", 2).returncode == 0
    big, ids = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "big"), torch.arange(9).view(1, 9)
    with torch.no_grad():
        torch.testing.assert_close(big(ids).logits, kernels.eval()(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("what", LOST)
def test_tensors_without_a_place_are_named(saved, what):
    argument, shape, name = LOST[what]
    add(saved, **{argument: torch.randn(shape)})
    for opener in (open_model, open_streamed, lambda s: ms.fuse([open_streamed(s), open_streamed(s)])):
        with pytest.raises(
            ms.MeristemError, match=rf"has no place for 1 tensors of its files \({name}\), which would be lost"
        ):
            opener(str(saved))
    for opener in (open_model, open_streamed):
        model = opener(str(saved), drop=[name])
        assert sum(p.numel() for p in model.parameters()) == pico.build("llama").num_parameters()


def test_the_error_offers_what_would_leave_them_out(saved, tmp_path):
    add(saved, **{f"mtp__layers__{i}__{part}__weight": torch.randn(2) for i in range(3) for part in ("up", "down")},
        value_head__weight=torch.randn(1, 32))  # fmt: skip
    done = meristem("grow", saved, tmp_path / "out", "--width", 2)
    assert done.returncode == 2
    assert "7 tensors" in done.stderr
    assert "--drop 'mtp.layers.*' --drop 'value_head.weight'" in done.stderr
    assert not (tmp_path / "out").exists()
    flags = ["--drop", "mtp.layers.*", "--drop", "value_head.weight"]
    done = meristem("grow", saved, tmp_path / "out", "--width", 2, *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "meristem.json").read_text())["dropped"] == [
        "mtp.layers.*",
        "value_head.weight",
    ]


def test_layers_that_a_class_says_to_ignore_were_learned(tmp_path, monkeypatch):
    """DeepSeek's, GLM's and Qwen's classes ignore the layers for multi-token prediction; what they hold is lost all the same."""
    monkeypatch.setattr(
        transformers.LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.2.*", r"^mtp.*", r"attn\.old_bias"],
        raising=False,
    )  # fmt: skip
    pico.build("llama").save_pretrained(tmp_path / "small")
    add(tmp_path / "small", model__layers__0__self_attn__old_bias=torch.randn(3))
    open_streamed(str(tmp_path / "small"))
    for name in ("model__layers__2__mlp__up_proj__weight", "mtp__layers__0__weight"):
        shutil.copytree(tmp_path / "small", tmp_path / name)
        add(tmp_path / name, **{name: torch.randn(3)})
        with pytest.raises(ms.MeristemError, match="which would be lost"):
            open_streamed(str(tmp_path / name))


@pytest.mark.parametrize("family, tensors", [
    ("llama", {"model__layers__0__self_attn__rotary_emb__inv_freq": (4,), "model__rotary_emb__inv_freq": (4,)}),
    ("bert", {"bert__embeddings__position_ids": (1, 64)}),
    ("gpt2", {"transformer__h__0__attn__bias": (1, 1, 64, 64), "h__1__attn__masked_bias": ()}),
    ("t5", {"decoder__block__0__layer__1__EncDecAttention__relative_attention_bias__weight": (32, 4)}),
])  # fmt: skip
def test_what_was_not_learned_may_lie_there(family, tensors, tmp_path):
    pico.build(family).save_pretrained(tmp_path / "small")
    add(tmp_path / "small", **{name: torch.ones(shape) for name, shape in tensors.items()})
    streamed, stock = open_streamed(str(tmp_path / "small")), pico.build(family)
    assert ms.verify(stock, streamed).holds


def test_two_tensors_for_one_place(tmp_path):
    """GPT-2's names with and without their prefix: one would win and the other be lost."""
    pico.build("gpt2").save_pretrained(tmp_path / "small")
    add(tmp_path / "small", h__0__ln_1__weight=torch.randn(32))
    with pytest.raises(ms.MeristemError, match="which would be lost"):
        open_streamed(str(tmp_path / "small"))


def test_statistics_of_batch_norms_are_no_detail(tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "small")
    file = tmp_path / "small" / "model.safetensors"
    tensors = load_file(file)
    counted = next(name for name in tensors if name.endswith("num_batches_tracked"))
    save_file({k: v for k, v in tensors.items() if k != counted}, file, {"format": "pt"})
    for opener in (open_model, open_streamed):
        opener(str(tmp_path / "small"))
    mean = next(name for name in tensors if name.endswith("running_mean"))
    save_file({k: v for k, v in tensors.items() if k != mean}, file, {"format": "pt"})
    for opener in (open_model, open_streamed):
        with pytest.raises(ms.MeristemError, match="1 tensors of ResNetForImageClassification are missing"):
            opener(str(tmp_path / "small"))


@pytest.mark.parametrize("family", list(pico.FAMILIES))
def test_in_memory_is_what_stock_transformers_loads(family, tmp_path):
    pico.build(family).save_pretrained(tmp_path / "small")
    stock = type(pico.build(family)).from_pretrained(tmp_path / "small")
    model = open_model(str(tmp_path / "small"))
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in stock.named_parameters()
    }
    assert [n for n, _ in model.named_buffers()] == [n for n, _ in stock.named_buffers()]
    for (name, ours), (_, theirs) in zip(model.named_buffers(), stock.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    for name, tensor in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    model.train()(**{**ms.anatomy.inputs.example_inputs(model)}).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad and p.numel())


COMPANIONS = [
    "tokenizer.json", "tokenizer_config.json", "spm.model", "source.spm", "target.spm", "tekken.json", "tiktoken.model", "qwen.tiktoken",
    "chat_template.json", "chat_template.jinja", "additional_chat_templates/tool.jinja", "normalizer.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "LICENSE", "NOTICE.txt", "modules.json", "config_sentence_transformers.json",
    "1_Pooling/config.json", "vocab.bpe", "a file of no known name",
]  # fmt: skip
LEFT = ["pytorch_model.bin", "onnx/", "checkpoint-5/", "2_Dense/", "runs/", "modeling_x.py", "optimizer.pt", "consolidated.safetensors",
        "pytorch_model.bin.index.json"]  # fmt: skip
INSIDE = {
    "onnx/": "model.onnx",
    "checkpoint-5/": "model.safetensors",
    "2_Dense/": "model.safetensors",
    "runs/": "events",
}


def test_what_is_not_weights_travels_along(saved, tmp_path):
    for name in [*COMPANIONS, *(f"{name}{INSIDE.get(name, '')}" for name in LEFT), ".git/HEAD", ".gitattributes"]:
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_text(f"of {name}")
    done = meristem("grow", saved, saved / "big", "--width", 2)  # OUT inside of SRC is no part of it
    assert done.returncode == 0, done.stderr
    for name in COMPANIONS:
        assert (saved / "big" / name).read_text() == f"of {name}"
    for name in LEFT:
        assert name in done.stderr.partition("not copied from")[2]
        assert not (saved / "big" / name).exists()
    assert not (saved / "big" / ".git").exists()
    assert not (saved / "big" / "big").exists()
    ours = json.loads((saved / "big" / "config.json").read_text())
    assert ours["hidden_size"] == 64
    assert "of config" not in (saved / "big" / "README.md").read_text()
    assert (
        meristem("grow", saved, saved / "big", "--width", 2, "--overwrite").returncode == 0
    )  # companions are ours to replace


def test_code_travels_when_it_is_trusted(saved):
    (saved / "tokenization_x.py").write_text("")
    assert companions(saved).left == ("tokenization_x.py",)
    assert companions(saved, trust_remote_code=True).copied == ("tokenization_x.py",)


@pytest.mark.parametrize("entries", [{"num_beams": 4, "max_length": 50, "no_repeat_ngram_size": 3}, {}])
@pytest.mark.parametrize("with_file", [True, False])
def test_generation_entries_stay_where_stock_keeps_them(tmp_path, entries, with_file):
    model = pico.build("bart") if "bart" in pico.FAMILIES else pico.build("t5")
    model.save_pretrained(tmp_path / "small")
    config = tmp_path / "small" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **entries}))
    if not with_file:
        (tmp_path / "small" / "generation_config.json").unlink()
    type(model).from_pretrained(tmp_path / "small").save_pretrained(tmp_path / "stock")
    write_model(open_streamed(str(tmp_path / "small")), tmp_path / "streamed", {})
    write_model(open_model(str(tmp_path / "small")), tmp_path / "in_memory", {})
    for ours in ("streamed", "in_memory"):
        for name in ("config.json", "generation_config.json"):
            stock = tmp_path / "stock" / name
            assert (tmp_path / ours / name).exists() == stock.exists()
            if stock.exists():
                assert json.loads((tmp_path / ours / name).read_text()) == json.loads(stock.read_text()), (ours, name)
    assert set(StoredTensors(tmp_path / "streamed")) == set(StoredTensors(tmp_path / "stock"))
