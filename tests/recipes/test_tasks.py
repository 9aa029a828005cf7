"""Every task of a recipe trains, and its networks grow."""

import pytest
from test_run import word_tokenizer

import meristem as ms
from meristem.recipes import run
from meristem.recipes.schema import parse_recipe
from meristem.recipes.tasks import open_task

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
BERT = {"model_type": "bert", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **SIZES}
TASKS = {
    "causal-lm": {"model_type": "llama", **SIZES},
    "masked-lm": BERT,
    "span-corruption": T5,
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
    assert ("eval_accuracy" in small.metrics) == (task == "image-classification")
    assert (small.examples, small.tokens) == (400, 0 if task == "image-classification" else 400 * 32)


def test_tokenizers_without_the_special_tokens(corpus_file, tmp_path):
    tokenizer = word_tokenizer(tmp_path / "tokenizer", ["<unk>", "<eos>", "times", "is", "."])
    for task, words in (("masked-lm", "no mask token"), ("span-corruption", "has 0 sentinels")):
        data = parse_recipe({"data": {**data_of(task, corpus_file), "tokenizer": tokenizer}, "nodes": {
            "a": {"train": {"model": TASKS[task], "examples": 1, "learning_rate": 1}}}}).data  # fmt: skip
        with pytest.raises(ms.MeristemError, match=words):
            open_task(data).evaluation_set()
