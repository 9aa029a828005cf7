"""UL2's denoisers by decoders: the input is read in both directions, the target alone is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small import MODEL, corpus

import meristem as ms
from meristem.checkpoints import open_model
from meristem.data import Denoisers, PrefixDenoisers, Sequences
from meristem.data.denoisers import prefix_lm_length, prefix_mask, sentinels_wanted
from meristem.data.encoding import IGNORED
from meristem.recipes import run
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task
from meristem.recipes.tasks.apart import check_prefix_is_seen

LENGTH = 64
STORIES = Path(__file__).parents[3] / "shared" / "data" / "checkpoints" / "stories260K-llama"
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def recipe(tmp_path, models, **data):
    train = {"examples": 80, "learning_rate": 1e-2, "batch_size": 8, "evaluations": 2}
    nodes = {f"n{number}": {"train": {**train, "model": model}} for number, model in enumerate(models)}
    own = {**corpus(tmp_path), "task": "ul2", "sequence_length": 48, "eval_sequences": 8, **data}
    return parse_recipe({"data": own, "nodes": nodes})


def test_an_example_is_that_of_an_encoder_decoder_in_one_piece():
    text, sentinels = np.arange(3, 3 + 20 * LENGTH) % 900 + 3, np.arange(1000, 1000 + sentinels_wanted(LENGTH))
    halves, whole = (kind(Sequences(text, LENGTH, 60, seed=1), sentinels, 2) for kind in (Denoisers, PrefixDenoisers))
    longest = 0
    for position in range(60):
        one, other = halves[position], whole[position]
        inputs = one["input_ids"][one["attention_mask"].bool()].tolist()
        target = one["labels"][one["labels"] != IGNORED].tolist()
        size = len(inputs) + len(target)
        longest = max(longest, size)
        assert other["input_ids"][:size].tolist() == inputs + target
        assert other["labels"].tolist() == [IGNORED] * len(inputs) + target + [IGNORED] * (len(other["labels"]) - size)
        mask = other["attention_mask"][0]
        assert mask[: len(inputs)].sum(1).tolist() == [len(inputs)] * len(inputs)
        assert mask[len(inputs) :].sum(1).tolist() == list(range(len(inputs) + 1, len(mask) + 1))
    assert longest == prefix_lm_length(LENGTH)


def test_a_prefix_mask():
    assert prefix_mask(4, 2)[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_decoder_learns_by_ul2s_denoisers(tmp_path, family):
    """What is asked for is counted in the loss, and nothing else: the loss of the result is that of its own logits."""
    model = {"n_embd": 16, "n_layer": 1, "n_head": 2} if family == "gpt2" else {**MODEL, "num_key_value_heads": 2}
    own = recipe(tmp_path, [{**model, "model_type": family}])
    assert own.data.prefix_lm
    out = tmp_path / "out"
    done = run(own, out)[0]["n0"]
    assert done.metrics["eval_loss"] < done.curve[0]["eval_loss"]
    (place,) = out.glob("n0-*/model")
    network, task = open_model(str(place)).eval(), open_task(own.data)
    examples = task.evaluation_set()
    batch = {name: torch.stack([examples[i][name] for i in range(8)]) for name in examples[0]}
    with torch.no_grad():
        logits = network(**batch).logits
    said, wanted = task.answers(logits, batch["labels"])
    loss = torch.nn.functional.cross_entropy(said, wanted)
    assert float(loss) == pytest.approx(done.metrics["eval_loss"], rel=1e-5)


def test_a_trained_checkpoint_reads_a_prefix_in_both_directions():
    if not STORIES.exists():
        pytest.skip("no checkpoints in ../shared")
    check_prefix_is_seen(open_model(str(STORIES)), "stories")


def test_an_eager_network_is_not_fooled():
    """A true-or-false mask that is added to scores would do next to nothing; it is measured, and refused."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{k: v for k, v in MODEL.items() if k != "model_type"}, vocab_size=300)
    config._attn_implementation = "eager"
    with pytest.raises(ms.MeristemError, match="does not read a prefix in both directions"):
        check_prefix_is_seen(LlamaForCausalLM(config), "eager")


@pytest.mark.parametrize("models, data, words", [
    ([{"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1}], {}, "does not read a prefix in both directions"),
    ([T5, MODEL], {}, "give each a recipe of its own"),
    ([MODEL], {"prefix_lm": False}, "set prefix_lm: true under data|T5|Seq2Seq|encoder-decoder"),
    ([T5], {"prefix_lm": True}, "T5|Causal"),
    ([MODEL], {"task": "causal-lm", "prefix_lm": True}, "prefix_lm needs task ul2"),
])  # fmt: skip
def test_bad_input(tmp_path, models, data, words):
    with pytest.raises(ms.MeristemError, match=words):
        run(recipe(tmp_path, models, **data), tmp_path / "out")


def test_encoder_decoders_are_asked_as_before(tmp_path):
    assert recipe(tmp_path, [T5]).data.prefix_lm is False
