"""The command line as a user meets it: in a process of its own, with its exit codes and its messages."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
import yaml
from command_line import here, meristem
from safetensors.torch import save_file

import meristem as ms
from meristem.cli.inputs import read_inputs

SPIED = "import sys; from meristem.cli.main import main\ntry: main()\nfinally: print('torch' in sys.modules)"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    pico.build("llama").save_pretrained(path)
    return path


def test_help_does_not_import_torch():
    done = subprocess.run([sys.executable, "-c", SPIED, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for verb in ("inspect", "grow", "verify", "run", "race", "demo"):
        assert verb in done.stdout
    assert done.stdout.strip().endswith("False")


def test_grow_then_verify_then_inspect(small, tmp_path):
    out = tmp_path / "big"
    done = meristem("grow", small, out, "--width", 2, "--noise", 0.1)
    assert done.returncode == 0, done.stderr
    assert "certificate: relative logit error" in done.stdout
    record = json.loads((out / "meristem.json").read_text())
    assert record["certificate"]["holds"]
    assert record["methods"][0] | {"method": "hypercloning", "width": 2, "noise": 0.1} == record["methods"][0]
    assert len(record["source"]["sha256"]) == 64
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 64
    compared = meristem("verify", small, out)
    assert compared.returncode == 0
    assert "None" not in compared.stdout  # what was not measured has no row
    shown = meristem("inspect", out)
    assert shown.returncode == 0
    assert "methods to shrink: weight_selection, prune\n" in shown.stdout
    assert "prune" not in shown.stdout.partition("methods to grow: ")[2].partition("methods to shrink")[0]
    assert "num_key_value_heads" in shown.stdout


def test_verify_of_another_model_exits_1(small, tmp_path):
    pico.build("llama", seed=5).save_pretrained(tmp_path / "other")
    assert meristem("verify", small, tmp_path / "other").returncode == 1


@pytest.mark.parametrize("options, message", [
    (["--width", "0"], "width must be a whole number of at least 1"),
    (["--width", "1.5"], "--width must be a whole number of at least 1, got 1.5"),
    (["--num-attention-heads", "6", "--num-key-value-heads", "4"], "cannot be shared evenly"),
    (["--method", "hypercloing", "--width", "2"], "did you mean 'hypercloning'"),
    (["--width", "2", "--tied", "maybe"], "tied is one of 'keep', 'untie', got 'maybe'"),
    ([], "nothing to grow"),
])  # fmt: skip
def test_bad_options_leave_nothing(small, tmp_path, options, message):
    done = meristem("grow", small, tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_sources_leave_nothing(small, tmp_path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    pico.build("llama").save_pretrained(broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    for source, message in ((tmp_path / "empty", "not a model directory"), (broken, "not a whole safetensors file")):
        done = meristem("grow", source, tmp_path / "out", "--width", 2)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept_unless_overwritten(small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    for flags, words in (([], "pass --overwrite"), (["--overwrite"], "holds mine, which neither Meristem")):
        done = meristem("grow", small, tmp_path / "out", "--width", 2, *flags)
        assert done.returncode == 2
        assert words in done.stderr
        assert (tmp_path / "out" / "mine").read_text() == "precious"
    (tmp_path / "out" / "mine").unlink()
    for _ in range(2):
        assert meristem("grow", small, tmp_path / "out", "--width", 2, "--overwrite").returncode == 0
        assert (tmp_path / "out" / "config.json").exists()


def test_no_command_writes_over_its_source(small, tmp_path):
    shutil.copytree(small, tmp_path / "models" / "small")
    (tmp_path / "models" / "notes.txt").write_text("months of work")
    source = tmp_path / "models" / "small"
    for arguments in (
        ("grow", source, tmp_path / "models", "--width", 2),
        ("grow", source, source, "--width", 2),
        ("shrink", source, source, "--hidden-size", 16),
        ("fuse", small, source, source),
    ):
        done = meristem(*arguments, "--overwrite")
        assert done.returncode == 2
        assert "which would be lost; choose another place" in done.stderr
    assert sorted(path.name for path in source.iterdir()) == sorted(path.name for path in small.iterdir())
    assert (tmp_path / "models" / "notes.txt").exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_so_and_leaves_nothing(sent, code, small, tmp_path):
    command = [sys.executable, "-m", "meristem.cli.main", "grow", str(small), str(tmp_path / "out"), "--width", "120"]
    running = subprocess.Popen(
        [*command, "--no-verify"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not list(tmp_path.glob(".out.partial/*.safetensors")) and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(sent)
    _, said = running.communicate(timeout=120)
    assert running.returncode == code
    assert "interrupted; nothing is left half-written. Run the same command again" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_inputs_of_the_users_own(small, tmp_path):
    ids = [[5, 6, 7, 8, 9]]
    (tmp_path / "ids.json").write_text(json.dumps({"input_ids": ids}))
    done = meristem("grow", small, tmp_path / "big", "--width", 2, "--inputs", tmp_path / "ids.json")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "big" / "meristem.json").read_text())
    assert record["certificate"]["inputs"] == "given: input_ids (1, 5)"
    np.savez(tmp_path / "ids.npz", input_ids=np.array(ids))
    save_file({"input_ids": torch.tensor(ids)}, tmp_path / "ids.safetensors")
    for name in ("ids.npz", "ids.safetensors"):
        assert read_inputs(tmp_path / name)["input_ids"].tolist() == ids
    assert meristem("verify", small, tmp_path / "big", "--inputs", tmp_path / "ids.npz").returncode == 0
    (tmp_path / "ids.txt").write_text("5 6 7")
    (tmp_path / "bad.json").write_text('["input_ids"]')
    (tmp_path / "none.json").write_text("{}")
    np.savez(tmp_path / "pickle.npz", input_ids=np.array([{}], dtype=object))
    for name, words in (
        ("ids.txt", "inputs are a .safetensors, .npz, .json file"),
        ("bad.json", "holds a list and no named tensors"),
        ("none.json", "holds no tensors"),
        ("pickle.npz", "holds no named tensors"),
        ("nowhere.json", "cannot be read"),
    ):
        with pytest.raises(ms.MeristemError, match=words):
            read_inputs(tmp_path / name)


def test_token_files_hold_whole_numbers_without_sign(tmp_path):
    np.savez(tmp_path / "ids.npz", input_ids=np.array([[5, 6, 65535]], dtype=np.uint16))
    found = read_inputs(tmp_path / "ids.npz")["input_ids"]
    assert found.dtype == torch.int64
    assert found.tolist() == [[5, 6, 65535]]


def test_inputs_that_forward_does_not_take(small, tmp_path):
    np.savez(tmp_path / "more.npz", input_ids=np.array([[5, 6]]), pixel_values=np.zeros((1, 3, 4, 4)))
    for verb in (["grow", small, tmp_path / "big", "--width", 2], ["verify", small, small]):
        with pytest.raises(
            ms.MeristemError, match=r"forward of LlamaForCausalLM takes no pixel_values.*it takes attention_mask"
        ):
            here(*verb, "--inputs", tmp_path / "more.npz")
    np.savez(tmp_path / "high.npz", input_ids=np.array([[5, 6, 99]]))
    with pytest.raises(
        ms.MeristemError,
        match=r"LlamaForCausalLM does not run on these inputs \(input_ids \(1, 3\) int64 from 5 to 99\)",
    ):
        here("verify", small, small, "--inputs", tmp_path / "high.npz")


STORIES = Path(__file__).parents[3] / "shared" / "data" / "checkpoints" / "stories260K-llama"


@pytest.mark.skipif(not STORIES.exists(), reason="no trained checkpoint here")
def test_text_becomes_the_models_own_tokens(tmp_path):
    from transformers import AutoTokenizer

    from meristem.checkpoints import open_streamed
    from meristem.cli.inputs import inputs_for

    text = "Once upon a time there was a girl named Lily. " * 40
    (tmp_path / "story.txt").write_text(text)
    wanted = AutoTokenizer.from_pretrained(STORIES).encode(text, add_special_tokens=False)[:512]
    found = inputs_for(str(tmp_path / "story.txt"), str(STORIES), open_streamed(str(STORIES)))
    assert found["input_ids"].shape == (4, 128)
    assert found["input_ids"].flatten().tolist() == wanted
    (tmp_path / "short.txt").write_text("Once upon a time")
    short = inputs_for(str(tmp_path / "short.txt"), str(STORIES), open_streamed(str(STORIES)))["input_ids"]
    assert short.shape[0] == 1
    assert 4 <= short.shape[1] < 12
    assert here("grow", STORIES, tmp_path / "big", "--width", 2, "--inputs", tmp_path / "story.txt") == 0
    record = json.loads((tmp_path / "big" / "meristem.json").read_text())
    assert record["certificate"]["inputs"] == "given: input_ids (4, 128)"
    assert here("verify", STORIES, tmp_path / "big", "--inputs", tmp_path / "story.txt") == 0
    for named, words in (("empty.txt", "holds no text"), ("nowhere.txt", "no such file|nowhere.txt")):
        (tmp_path / "empty.txt").write_text("")
        with pytest.raises(ms.MeristemError, match=words):
            here("verify", STORIES, STORIES, "--inputs", tmp_path / named)


def test_text_for_a_model_without_a_tokenizer(small, tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(ms.MeristemError, match="holds no tokenizer; put its own there"):
        here("verify", small, small, "--inputs", tmp_path / "a.txt")


def test_a_bad_recipe_leaves_nothing(tmp_path):
    file = tmp_path / "r.yaml"
    train = {"model": {"model_type": "llama"}, "tokens": 1, "learning_rate": 1}
    file.write_text(yaml.safe_dump({"nodes": {"a": {"train": train}}, "rase": {}}))
    for verb in ("run", "race"):
        done = meristem(verb, file, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert "did you mean 'race'" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_executors_from_the_command_line(tmp_path):
    file, text = tmp_path / "r.yaml", tmp_path / "text.txt"
    text.write_text("".join(f"{i} plus {i} is {i + i}.\n" for i in range(500)))
    model = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    train = {"model": model, "tokens": 128, "learning_rate": 1e-3, "batch_size": 2}
    data = {"source": str(text), "sequence_length": 32, "eval_sequences": 2}
    file.write_text(
        yaml.safe_dump({"data": data, "nodes": {"a": {"train": train}, "b": {"train": {**train, "seed": 1}}}})
    )
    for options, words in (
        (["--executor", "rai"], "did you mean 'ray'"),
        (["--executor", "local", "--executor-option", "slot=2"], "did you mean 'slots'"),
        (["--executor", "local", "--executor-option", "slots"], "takes name=value"),
        (["--executor-option", "slots=2"], "needs --executor"),
    ):
        done = meristem("run", file, "--out", tmp_path / "out", *options)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert words in done.stderr
        assert not (tmp_path / "out").exists()
    done = meristem("run", file, "--out", tmp_path / "out", "--executor", "local", "--executor-option", "slots=2")
    assert done.returncode == 0, done.stderr
    assert "a (seed 0): done" in done.stderr
    assert len(list((tmp_path / "out").glob("*/node.json"))) == 2


def test_a_race_leaves_a_table_a_picture_and_json(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} plus {i} is {i + i}.\n" for i in range(3000)))
    model = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    train = {"tokens": 2000, "learning_rate": 3e-3, "batch_size": 4, "evaluations": 3}
    content = {
        "data": {"source": str(text), "sequence_length": 32, "eval_sequences": 8},
        "nodes": {
            "small": {"train": {"model": model, **train}},
            "grown": {"grow": {"from": "small", "method": "hypercloning", "width": 2}},
            "big": {"train": {"from": "grown", **train}},
            "scratch": {"train": {"model": {**model, "hidden_size": 32, "num_attention_heads": 4}, **train}},
        },
        "race": {"challenger": "big", "baseline": "scratch"},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    done = meristem("race", tmp_path / "r.yaml", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "compute saved to the baseline's final loss" in done.stdout
    assert (tmp_path / "out" / "race.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "out" / "race.json").read_text())
    assert report["laps"][0]["ancestors_flops"] > 0
    assert report["machine"]


def test_plan_counts_before_spending(small):
    done = meristem("plan", small, "--width", 2, "--tokens", "10M", "--small-tokens", "4M")
    assert done.returncode == 0, done.stderr
    rows = {line.split("│")[1].strip(): line.split("│") for line in done.stdout.splitlines() if "│" in line}
    assert rows["from scratch"][5].strip() == "100%"
    assert rows["grow, same FLOPs"][5].strip() == "100%"
    assert 60 < int(rows["grow, same tokens"][5].strip(" %")) < 80  # 4M of the tokens cost about a quarter
    assert rows["grow, small given"][3] == rows["grow, same FLOPs"][3]
    assert "takes a count such as 10M" in meristem("plan", small, "--width", 2, "--tokens", "many").stderr


def test_shrink_and_composed_growth(small, tmp_path):
    done = meristem("grow", small, tmp_path / "big", "--method", "lemon,stacking", "--hidden-size", 48, "--depth", 2)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "big" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (48, 4)
    done = meristem(
        "shrink", tmp_path / "big", tmp_path / "tiny", "--hidden-size", 16, "--option", "selection=magnitude"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["hidden_size"] == 16
    done = meristem("shrink", small, tmp_path / "larger", "--hidden-size", 64)
    assert done.returncode == 2
    assert "weight_selection shrinks: asked for hidden of 64" in done.stderr
    assert "Traceback" not in done.stderr


def test_fuse_two_models_and_one_with_itself(small, tmp_path):
    other = tmp_path / "other"
    pico.build("llama", seed=1).save_pretrained(other)
    done = meristem("fuse", small, other, tmp_path / "both", "--weights", "0.7,0.3")
    assert done.returncode == 0, done.stderr
    assert "gap to the parents' mean" in done.stdout
    assert json.loads((tmp_path / "both" / "config.json").read_text())["hidden_size"] == 64
    record = json.loads((tmp_path / "both" / "meristem.json").read_text())
    assert [len(source["sha256"]) for source in record["sources"]] == [64, 64]
    assert not record["exact"]
    done = meristem("fuse", small, small, tmp_path / "twice")
    assert done.returncode == 0, done.stderr
    assert "the parents' mean, proved" in done.stdout
    assert meristem("verify", small, tmp_path / "twice").returncode == 0
    for arguments, words in (
        ((small, tmp_path / "out"), "at least two models"),
        ((small, other, tmp_path / "out", "--weights", "0.7,0.7"), "sum to 1"),
        (
            (small, other, tmp_path / "out", "--norm", "batched"),
            "norm is one of 'plain', 'equalised', 'grouped', got 'batched'",
        ),
        ((small, other, tmp_path / "both"), "exists"),
    ):
        done = meristem("fuse", *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
