"""Different networks fused exactly: each keeps norms of its own, in a class that ships with the checkpoint."""

import json
import subprocess
import sys

import pico
import pytest
import torch

import meristem as ms
from meristem.anatomy.inputs import example_inputs
from meristem.checkpoints import open_model, open_streamed
from meristem.checkpoints.record import fusion_record
from meristem.checkpoints.write import write_model
from meristem.growth.fuse import fuse_with_certificate
from meristem.recipes import run
from meristem.recipes.specs.schema import parse_recipe

FAMILIES = ("llama", "gpt2", "t5", "bert", "vit", "mistral", "qwen2", "opt", "gpt_neox", "phi3")
GROUPED = ms.DeepFusion(norm="grouped")


def parents(family, loud=1.7):
    """Two networks whose streams differ in size."""
    a, b = pico.build(family, 0), pico.build(family, 1)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.mul_(loud)
    return a, b


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_the_parents_mean(family):
    a, b = parents(family)
    inputs = example_inputs(a)
    fused = ms.fuse([a, b], GROUPED).eval()
    with torch.no_grad():
        mean = (a.eval()(**inputs).logits + b.eval()(**inputs).logits) / 2
        torch.testing.assert_close(fused(**inputs).logits, mean, atol=1e-5 * float(mean.abs().max()), rtol=0)
    assert fused.config.norm_groups == "32+32"
    assert type(fused).__name__.startswith("Grouped")


def test_the_loss_is_at_most_the_mean_of_the_parents_losses():
    a, b = parents("llama")
    fused = ms.fuse([a, b], GROUPED)
    tokens = torch.randint(3, 60, (8, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = [float(m.eval()(input_ids=tokens, labels=tokens).loss) for m in (a, b, fused)]
    assert losses[2] <= (losses[0] + losses[1]) / 2


def test_weights_and_further_fusions():
    a, b = parents("gpt2")
    both = fuse_with_certificate([a, b], ms.DeepFusion(norm="grouped", weights=[0.3, 0.7]))
    assert both.exact
    assert both.certificate.holds
    four = fuse_with_certificate([both.model, ms.fuse([b, a], GROUPED)], GROUPED)
    assert four.certificate.holds
    assert four.model.config.norm_groups == "32+32+32+32"
    wide = pico.build("llama", 2, hidden_size=64, num_attention_heads=8, num_key_value_heads=4)
    uneven = ms.fuse([pico.build("llama", 0), wide], GROUPED)
    assert uneven.config.norm_groups == "32+64"


def test_a_soft_cap_on_logits_leaves_a_gap():
    fusion = fuse_with_certificate(parents("gemma2"), GROUPED)
    assert not fusion.exact


def test_depth_grows_and_width_is_refused():
    fused = ms.fuse(parents("llama"), GROUPED)
    deeper = ms.grow(fused, ms.IdentityBlocks(depth=2))
    assert type(deeper) is type(fused)
    assert deeper.config.norm_groups == "32+32"
    with pytest.raises(ms.MeristemError, match="groups of units"):
        ms.grow(fused, ms.HyperCloning(width=2))


STOCK = """
import sys, torch, transformers
for folder in sys.argv[1:]:
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    auto = next(name for name in config.auto_map if name != "AutoConfig")
    model, info = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"]
    case = torch.load(f"{folder}/case.pt", weights_only=True)
    torch.testing.assert_close(model.eval()(**case["inputs"]).logits, case["logits"], atol=1e-5, rtol=1e-4)
    model.save_pretrained(f"{folder}/again")
    again = type(model).from_pretrained(f"{folder}/again", trust_remote_code=True)
    assert open(f"{folder}/again/modeling_grouped.py").read() == open(f"{folder}/modeling_grouped.py").read()
assert not any(name.startswith("meristem") for name in sys.modules)
"""


def test_the_checkpoint_carries_its_class(tmp_path, monkeypatch):
    folders = []
    for family in ("llama", "t5", "bert"):
        fusion = fuse_with_certificate(pair := parents(family, 1.2), GROUPED)
        out = tmp_path / family
        write_model(fusion.model, out, fusion_record(fusion, ["a", "b"]))
        inputs = example_inputs(fusion.model)
        with torch.no_grad():
            logits = sum(m.eval()(**inputs).logits for m in pair) / 2
        torch.save({"inputs": inputs, "logits": logits}, out / "case.pt")
        again, lazily = open_model(str(out)), open_streamed(str(out))
        assert ms.verify(fusion.model, again).holds
        assert ms.verify(fusion.model, lazily).holds
        folders.append(str(out))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    done = subprocess.run([sys.executable, "-c", STOCK, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_code_in_a_checkpoint_is_not_run(tmp_path):
    fusion = fuse_with_certificate(parents("llama"), GROUPED)
    out = tmp_path / "fused"
    write_model(fusion.model, out, fusion_record(fusion, ["a", "b"]))
    (out / "modeling_grouped.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit")
    assert ms.verify(fusion.model, open_model(str(out))).holds
    assert not (tmp_path / "ran").exists()
    config = json.loads((out / "config.json").read_text())
    for change, words in (({"architectures": ["GroupedOs"]}, "not a model class"), ({"norm_groups": "a+b"}, "fused")):
        (out / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ms.MeristemError, match=words):
            open_model(str(out))


def test_a_recipe_trains_on_with_the_fused_optimizer(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    model = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    train = {"tokens": 1280, "learning_rate": 3e-3, "batch_size": 4, "evaluations": 2}
    nodes = {
        "a": {"train": {"model": model, **train}},
        "b": {"train": {"model": model, "seed": 1, **train}},
        "both": {"fuse": {"from": ["a", "b"], "norm": "grouped", "optimizer": "carry"}},
        "big": {"train": {"from": "both", **train}},
    }
    data = {"source": str(text), "sequence_length": 32, "eval_sequences": 8}
    done = run(parse_recipe({"data": data, "nodes": nodes}), tmp_path / "out")[0]
    assert done["both"].details["exact"]
    start = done["big"].curve[0]["eval_loss"]
    assert start <= (done["a"].metrics["eval_loss"] + done["b"].metrics["eval_loss"]) / 2
    assert done["big"].metrics["eval_loss"] < start
    assert next((tmp_path / "out").glob("big-*/model/modeling_grouped.py")).exists()
