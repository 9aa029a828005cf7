"""Every task of a recipe trains, and its networks grow."""

import json
from pathlib import Path

import pytest
import torch
from test_run import word_tokenizer

import meristem as ms
from meristem.checkpoints import open_model
from meristem.errors import MeristemError
from meristem.recipes import run
from meristem.recipes.specs.data_specs import TextSpec
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task
from meristem.recipes.tasks.task import network

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
BERT = {"model_type": "bert", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **SIZES}
TASKS = {
    "causal-lm": {"model_type": "llama", **SIZES},
    "masked-lm": BERT,
    "span-corruption": T5,
    "text-to-text": T5,
    "image-classification": {"model_type": "vit", "patch_size": 4, **SIZES},
}


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    return str(file)


def data_of(task, corpus_file):
    if task == "image-classification":
        return {"task": task, "source": "digits", "eval_examples": 40}
    if task == "text-to-text":
        folder = Path(corpus_file).parent / "pairs"
        folder.mkdir(exist_ok=True)
        for name, numbers in (("train", range(400)), ("test", range(400, 440))):
            rows = [json.dumps({"text": f"{i} or {i * 7}", "label": "odd" if i % 2 else "even"}) for i in numbers]
            (folder / f"{name}.jsonl").write_text("\n".join(rows))
        return {"task": task, "source": str(folder), "sequence_length": 32}
    return {"task": task, "source": corpus_file, "sequence_length": 32, "eval_sequences": 16}


@pytest.mark.parametrize("task", TASKS)
def test_a_network_learns_and_grows(task, corpus_file, tmp_path):
    train = {"examples": 400, "batch_size": 8, "learning_rate": 1e-2, "evaluations": 2}
    nodes = {
        "small": {"train": {"model": TASKS[task], **train}},
        "grown": {"grow": {"from": "small", "method": "hypercloning", "width": 2, "optimizer": "carry"}},
        "big": {"train": {"from": "grown", **{**train, "examples": 80, "learning_rate": 1e-3}}},
    }
    done = run(parse_recipe({"data": data_of(task, corpus_file), "nodes": nodes}), tmp_path)[0]
    small, big = done["small"], done["big"]
    assert small.metrics["eval_loss"] < 0.9 * small.curve[0]["eval_loss"]
    assert big.curve[0]["eval_loss"] == pytest.approx(small.metrics["eval_loss"], rel=1e-4)
    assert ("eval_accuracy" in small.metrics) == (task in ("image-classification", "text-to-text"))
    assert (small.examples, small.tokens) == (400, 0 if task == "image-classification" else 400 * 32)


@pytest.mark.parametrize("model_type", ["roberta", "roberta-prelayernorm", "camembert", "bert"])
def test_positions_behind_a_row_for_padding(model_type, corpus_file):
    """RoBERTa counts positions from behind its padding, whose token bytes use for a mask."""
    task = open_task(TextSpec(**data_of("masked-lm", corpus_file)))
    model = task.new_model({"model_type": model_type, **SIZES}, 0)
    whole = task.evaluation_set().sequences[0]["input_ids"][None]
    assert model(input_ids=whole).logits.shape == (1, 32, 256)
    seen = []
    table = next(m for name, m in model.named_modules() if name.endswith(".position_embeddings"))
    table.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    masked = whole.clone()
    masked[0, 5:9] = 1
    model(input_ids=masked)
    assert seen[0].flatten().unique().numel() == 32


def test_a_mask_that_a_network_takes_for_padding(corpus_file, tmp_path):
    train = {"model": {"model_type": "mpnet", **SIZES}, "examples": 8, "batch_size": 8, "learning_rate": 1e-3}
    recipe = {"data": data_of("masked-lm", corpus_file), "nodes": {"small": {"train": train}}}
    with pytest.raises(MeristemError, match=r"MPNetForMaskedLM uses token 1 as padding.*own tokenizer"):
        run(parse_recipe(recipe), tmp_path)


def test_tokenizers_without_the_special_tokens(corpus_file, tmp_path):
    tokenizer = word_tokenizer(tmp_path / "tokenizer", ["<unk>", "<eos>", "times", "is", "."])
    for task, words in (("masked-lm", "no mask token"), ("span-corruption", "has 0 sentinels")):
        data = parse_recipe({"data": {**data_of(task, corpus_file), "tokenizer": tokenizer}, "nodes": {
            "a": {"train": {"model": TASKS[task], "examples": 16, "learning_rate": 1}}}}).data  # fmt: skip
        with pytest.raises(ms.MeristemError, match=words):
            open_task(data).evaluation_set()


def test_a_pre_trained_encoder_decoder_is_tuned_to_answer(corpus_file, tmp_path):
    common = {"batch_size": 8, "evaluations": 2}
    before = {"train": {"model": T5, "examples": 200, "learning_rate": 1e-2, **common}}
    run(parse_recipe({"data": data_of("span-corruption", corpus_file), "nodes": {"t5": before}}), tmp_path)
    (trained,) = tmp_path.glob("t5-*/model")
    nodes = {
        "t5": {"checkpoint": {"source": str(trained)}},
        "tuned": {"train": {"from": "t5", "examples": 1600, "learning_rate": 1e-2, **common}},
    }
    data = data_of("text-to-text", corpus_file)
    tuned = run(parse_recipe({"data": data, "nodes": nodes}), tmp_path)[0]["tuned"]
    assert tuned.metrics["eval_accuracy"] > 0.4 > tuned.curve[0]["eval_accuracy"]
    nodes = {"gpt": {"train": {"model": TASKS["causal-lm"], "examples": 8, "learning_rate": 1e-2, **common}}}
    with pytest.raises(ms.MeristemError, match="llama"):
        run(parse_recipe({"data": data, "nodes": nodes}), tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_losses_are_means_over_the_tokens_that_are_asked_for(model_type, corpus_file, tmp_path):
    entries = (
        {"model_type": model_type, **SIZES}
        if model_type == "llama"
        else {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
    )
    recipe = parse_recipe({"data": data_of("causal-lm", corpus_file), "nodes": {
        "a": {"train": {"model": entries, "examples": 8, "batch_size": 4, "learning_rate": 1e-3, "evaluations": 1}}}})  # fmt: skip
    loss = run(recipe, tmp_path)[0]["a"].metrics["eval_loss"]
    model = open_model(str(next(tmp_path.glob("a-*")) / "model")).eval()
    examples = open_task(recipe.data).evaluation_set()
    tokens = torch.stack([examples[i]["input_ids"] for i in range(len(examples))])
    with torch.no_grad():
        logits = model(tokens).logits
    assert loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())), rel=1e-4
    )


def test_an_encoder_decoder_learns_by_ul2s_denoisers(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    model = {
        "model_type": "t5",
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
    }
    train = {"model": model, "examples": 80, "learning_rate": 1e-2, "batch_size": 8, "evaluations": 2}
    data = {"task": "ul2", "source": str(tmp_path / "text.txt"), "sequence_length": 48, "eval_sequences": 8}
    done = run(parse_recipe({"data": data, "nodes": {"small": {"train": train}}}), tmp_path / "out")[0]["small"]
    assert done.metrics["eval_loss"] < done.curve[0]["eval_loss"]
    assert done.flops > 0
    data["sequence_length"] = 1024
    with pytest.raises(ms.MeristemError, match="ul2 on sequences of 1024 tokens needs 174"):
        open_task(parse_recipe({"data": data, "nodes": {"small": {"train": train}}}).data)


@pytest.mark.parametrize("model_type", ["deit"])
def test_a_model_type_that_several_classes_share(model_type, tmp_path):
    """transformers' own `from_config` fails for these: 'NoneType' object is not iterable."""
    from transformers import AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(model_type)
    if not isinstance(classes, tuple | list):
        pytest.skip(f"transformers knows one class of {model_type}")
    entries = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
    }
    model = network(
        AutoModelForImageClassification, {"model_type": model_type, **entries}, {"image_size": 8, "num_channels": 1}, 0
    )
    assert type(model).__name__ == classes[0]
    model.save_pretrained(tmp_path)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)).__name__ == classes[0]
