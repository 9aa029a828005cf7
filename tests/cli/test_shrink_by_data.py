"""`meristem shrink --method prune`: by what a network does on data of the user's."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pico
import pytest
import torch
from command_line import here
from safetensors.torch import save_file

import meristem as ms
from meristem.checkpoints import open_model
from meristem.cli.examples import Looked

SHARED = Path(__file__).parents[3] / "shared" / "data"
STORIES = SHARED / "checkpoints" / "stories260K-llama"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    pico.build("llama").save_pretrained(path)
    return path


def test_inputs_from_a_file_choose_as_in_python(small, tmp_path):
    ids = torch.randint(3, 67, (16, 12), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids, "labels": ids.clone()}, tmp_path / "ids.safetensors")
    out = tmp_path / "out"
    assert here("shrink", small, out, "--method", "prune", "--intermediate-size", 20, "--inputs", tmp_path / "ids.safetensors") == 0  # fmt: skip
    wanted = ms.shrink(open_model(str(small)), ms.Prune(intermediate_size=20), inputs={"input_ids": ids, "labels": ids})
    found = open_model(str(out)).state_dict()
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(found[name], tensor)
    record = json.loads((out / "meristem.json").read_text())
    assert record["methods"][0]["method"] == "prune"
    assert record["looked_at"] == {
        "data": str(tmp_path / "ids.safetensors"),
        "examples": 16,
        "shapes": {"input_ids": [12], "labels": [12]},
    }


@pytest.mark.skipif(not STORIES.exists(), reason="needs shared/data/checkpoints")
def test_half_the_feed_forward_of_a_trained_model(tmp_path):
    """On held-out stories the network pruned by data is nearer to the whole one than weight selection's, by half a nat at least."""
    stories = lzma.decompress((SHARED / "text" / "tinystories_sample_2MiB.txt.xz").read_bytes()).decode()
    (tmp_path / "text.txt").write_text(stories[:120_000])
    looked = Looked(data=str(tmp_path / "text.txt"), examples=8, sequence_length=128)
    model = open_model(str(STORIES))
    assert looked.batches(STORIES, model)[0]["input_ids"].shape == (8, 128)
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(STORIES)(stories[500_000:506_000], add_special_tokens=False)["input_ids"]
    held_out = torch.tensor(tokens[: 8 * 128]).view(8, 128)
    loss = {"whole": nll(STORIES, held_out)}
    half = ("--intermediate-size", 86)
    data = ("--data", tmp_path / "text.txt", "--examples", 8, "--sequence-length", 128)
    for method, more in {"weight_selection": (), "prune": data}.items():
        assert here("shrink", STORIES, tmp_path / method, "--method", method, *half, *more) == 0
        loss[method] = nll(tmp_path / method, held_out)
    assert loss["whole"] < 1.8
    assert loss["whole"] < loss["prune"] < loss["weight_selection"] - 0.5


def nll(path, ids) -> float:
    with torch.no_grad():
        return float(open_model(str(path))(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--method", "prune"], "give --data (text, such as a file) or --inputs"),
        (["--method", "prune", "--data", "a", "--inputs", "b"], "and not both"),
        (["--method", "prune", "--data", "python-stdlib"], "or, for --data, name one with --tokenizer"),
        (["--method", "prune", "--data", "nowhere.txt", "--tokenizer", "bytes"], "nowhere.txt"),
        (["--method", "prune", "--data", "a", "--examples", "0"], "--examples must be at least 1, got 0"),
        (["--method", "prune", "--inputs", "a.json", "--tokenizer", "bytes"], "--tokenizer is for --data"),
        (["--method", "prune", "--inputs", "a.json", "--option", "batches=3"], "give --data or --inputs"),
        (["--data", "a"], "weight_selection uses no data"),
        (["--method", "hypercloning"], "is one of weight_selection, prune"),
    ],
)
def test_what_cannot_be_looked_at_is_said(small, tmp_path, options, words):
    with pytest.raises(ms.MeristemError) as error:
        here("shrink", small, tmp_path / "out", "--intermediate-size", 20, *options)
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_text_in_another_tokenizers_tokens(small, tmp_path):
    """Bytes go up to 255; this model knows 67 tokens."""
    (tmp_path / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    with pytest.raises(ms.MeristemError, match="and the model knows 67: this is another tokenizer's"):
        here("shrink", small, tmp_path / "out", "--intermediate-size", 20, "--method", "prune", "--data", tmp_path / "text.txt", "--tokenizer", "bytes")  # fmt: skip
