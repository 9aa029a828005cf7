"""Recipes that read several sources, and documents each by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small import MODEL, TRAIN, corpus

import meristem as ms
from meristem.checkpoints import open_model
from meristem.data import open_corpus
from meristem.recipes import run
from meristem.recipes.describe import describe_data
from meristem.recipes.plan import plan_jobs
from meristem.recipes.specs.data_specs import TextSpec
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task
from meristem.recipes.tasks.apart import check_documents_apart
from meristem.recipes.tasks.language import CausalLanguage

CHECKPOINTS = Path(__file__).parents[3] / "shared" / "data" / "checkpoints"


def folder_of(place, word, documents=400):
    """Short documents that only speak of one thing."""
    place.mkdir(exist_ok=True)
    for number in range(documents):
        (place / f"{number}.txt").write_text(f"{word} {number}. " * (1 + number % 5))
    return str(place)


def data_of(tmp_path, **more):
    sources = [
        {"source": folder_of(tmp_path / "a", "aaa"), "weight": 3},
        {"source": folder_of(tmp_path / "b", "bbb"), "weight": 1},
    ]
    return {"sources": sources, "sequence_length": 32, "eval_sequences": 8, **more}


def recipe_of(data, **train):
    return parse_recipe({"data": data, "nodes": {"net": {"train": {**TRAIN, **train}}}})


def test_what_is_read_has_the_shares_that_were_asked_for(tmp_path):
    task = open_task(recipe_of(data_of(tmp_path)).data)
    for examples in (task.training_set(40, 5, 0), task.training_set(40, 5, 7), task.evaluation_set("tune")):
        texts = [bytes(examples[position]["input_ids"].tolist()) for position in range(len(examples))]
        speaking_of_b = sum(b"b" in text for text in texts) / len(texts)
        assert speaking_of_b == pytest.approx(0.25, abs=1 / len(texts))
    assert task.description.startswith("75.0% ")
    assert "\n25.0% " in task.description


@pytest.mark.parametrize("documents", ["across", "within", "whole"])
def test_a_run_that_is_killed_and_one_in_two_stages_read_what_one_run_reads(tmp_path, documents):
    data = data_of(tmp_path, documents=documents)
    task = open_task(recipe_of(data).data)
    whole = [task.training_set(60, 9, 0)[position] for position in range(60)]
    later = task.training_set(20, 9, 40)
    for position in range(20):
        for name, tensor in later[position].items():
            assert torch.equal(tensor, whole[40 + position][name])
    out = tmp_path / "out"
    result = run(recipe_of(data), out)[0]["net"]
    assert result.examples == 40
    assert result.metrics["eval_loss"] < result.curve[0]["eval_loss"]


def test_weights_and_texts_are_in_the_identity(tmp_path):
    def digest(data):
        recipe = recipe_of(data)
        return plan_jobs(recipe, tmp_path, open_task(recipe.data).fingerprint)[0].hash

    first, data = digest(data_of(tmp_path)), data_of(tmp_path)
    assert digest(data) == first
    assert digest({**data, "documents": "within"}) != first
    heavier = [{**data["sources"][0], "weight": 4}, data["sources"][1]]
    assert digest({**data, "sources": heavier}) != first
    (tmp_path / "b" / "0.txt").write_text("something else")
    assert digest(data) != first


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral"])
def test_the_loss_of_packed_documents_is_that_of_each_alone(tmp_path, family):
    """On a network that was trained: sums over what is asked for agree (transformers takes the loss in float32)."""
    data = {
        "source": folder_of(tmp_path / "a", "word"),
        "sequence_length": 64,
        "eval_sequences": 8,
        "documents": "whole",
    }
    own = {"num_key_value_heads": 2} if family in ("qwen3", "mistral") else {}
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0} if family == "gpt2" else {**MODEL, **own}
    recipe = recipe_of(data, model={**shape, "model_type": family})
    out = tmp_path / "out"
    run(recipe, out)
    (place,) = out.glob("net-*/model")
    network, examples = open_model(str(place)).double().eval(), open_task(recipe.data).evaluation_set()
    several = 0
    for position in range(len(examples)):
        example = examples[position]
        places = example["position_ids"].tolist()
        starts = [place for place, number in enumerate(places) if number == 0]
        several += len(starts) > 2
        batch = {name: tensor[None] for name, tensor in example.items()}
        asked = int((example["labels"][1:] != -100).sum())
        together = float(network(**batch, use_cache=False).loss) * asked
        alone = 0.0
        for start, end in zip(starts, [*starts[1:], len(places)], strict=True):
            labels = example["labels"][start:end].clone()
            if wanted := int((labels != -100).sum()):
                ids = example["input_ids"][start:end]
                alone += float(network(input_ids=ids[None], labels=labels[None]).loss) * wanted
        assert together == pytest.approx(alone, rel=1e-6)
    assert several


def test_trained_checkpoints_are_asked_whether_they_keep_documents_apart():
    found = sorted(place.parent for place in CHECKPOINTS.rglob("config.json"))
    if not found:
        pytest.skip("no checkpoints in ../shared")
    outcome = {}
    for place in found:
        kind = json.loads((place / "config.json").read_text()).get("architectures", ["?"])[0]
        if "CausalLM" in kind or "LMHead" in kind:
            try:
                check_documents_apart(open_model(str(place)), place.name)
                outcome[kind] = True
            except ms.MeristemError:
                outcome[kind] = False
    assert outcome == {"GPT2LMHeadModel": True, "LlamaForCausalLM": True}


@pytest.mark.parametrize("model, why", [
    ({"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1}, "logits differ by"),
    ({"model_type": "bloom", "hidden_size": 16, "n_layer": 1, "n_head": 2}, "logits differ by"),
])  # fmt: skip
def test_a_class_that_does_not_keep_documents_apart_is_refused(tmp_path, model, why):
    data = {"source": folder_of(tmp_path / "a", "word"), "sequence_length": 32, "documents": "within"}
    with pytest.raises(ms.MeristemError, match="does not keep the documents of a sequence apart") as error:
        run(recipe_of(data, model=model), tmp_path / "out")
    assert why in str(error.value)


@pytest.mark.parametrize("data, words", [
    ({"sources": [{"source": "a"}, {"source": "b"}], "source": "c"}, "give either `source` or `sources`"),
    ({"sources": [{"source": "a"}, {"source": "b"}], "stream": True}, "each with its own `stream`"),
    ({"sources": [{"source": "a"}]}, "at least 2 items"),
    ({"sources": [{"source": "a", "weight": 0}, {"source": "b"}]}, "greater than 0"),
    ({"sources": [{"source": "a", "wieght": 1}, {"source": "b"}]}, "did you mean 'weight'"),
    ({"source": "a", "documents": "whole", "task": "masked-lm"}, "needs task causal-lm"),
])  # fmt: skip
def test_bad_input(data, words):
    with pytest.raises(ms.MeristemError, match=words):
        recipe_of(data)


def test_sources_that_do_not_go_together(tmp_path):
    np.save(tmp_path / "tokens.npy", (np.arange(2000) % 300).astype("uint16"))
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": 300}))
    text = corpus(tmp_path)["source"]
    with pytest.raises(ms.MeristemError, match="vocabularies of different sizes"):
        open_task(recipe_of({"sources": [{"source": text}, {"source": str(tmp_path / "tokens.npy")}]}).data)
    with pytest.raises(ms.MeristemError, match="name it `end_token`"):
        open_task(recipe_of({"source": str(tmp_path / "tokens.npy"), "documents": "whole"}).data)


def test_the_description_names_each_source(tmp_path):
    found = describe_data(recipe_of(data_of(tmp_path, documents="whole")).data)
    assert found["documents"] == "800"
    first, second = (value for name, value in found.items() if name.startswith("source "))
    assert first.startswith("75.0 %")
    assert second.startswith("25.0 %")
    assert found["sequences filled"].endswith("%")
    assert float(found["sequences filled"][:-2]) > 90


def test_what_is_held_out_is_evaluated_once_and_not_again(tmp_path):
    """However many sequences are asked for; of several sources, until each has been read."""
    corpus(tmp_path, lines=400)
    one = TextSpec(source=str(tmp_path / "text.txt"), sequence_length=32, eval_sequences=10**9)
    held_out = CausalLanguage(one).evaluation_set()
    rows = {tuple(held_out[row]["input_ids"].tolist()) for row in range(len(held_out))}
    assert len(rows) == len(held_out) == len(open_corpus(one.source).eval) // 32
    few = one.model_copy(update={"eval_sequences": 5})
    assert len(CausalLanguage(few).evaluation_set()) == 5
    assert CausalLanguage(one).training_set(10**9, 0, 0).count == 10**9

    corpus(tmp_path, lines=1200, name="more.txt")
    parts = [{"source": str(tmp_path / "text.txt"), "weight": 1}, {"source": str(tmp_path / "more.txt"), "weight": 1}]
    two = TextSpec(sources=parts, sequence_length=32, eval_sequences=10**9)
    larger = len(open_corpus(parts[1]["source"]).eval) // 32
    assert len(CausalLanguage(two).evaluation_set()) == 2 * larger
