"""Classifiers of sequences whose heads stand apart: at the end token of a decoder's text, or on a pooler with a width of its own name."""

from __future__ import annotations

import pytest
import torch
import transformers as T
from support.tiny import randomise

import meristem as ms
from meristem.anatomy.inputs import example_inputs

BART = {
    "vocab_size": 67, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 44, "decoder_ffn_dim": 44, "max_position_embeddings": 64,
}  # fmt: skip
T5 = {"vocab_size": 67, "d_model": 32, "d_kv": 8, "d_ff": 44, "num_layers": 2, "num_heads": 4}
DEBERTA = {
    "vocab_size": 67, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
}  # fmt: skip
CLASSIFIERS = {
    "bart": (T.BartForSequenceClassification, BART),
    "t5": (T.T5ForSequenceClassification, {**T5, "eos_token_id": 1, "decoder_start_token_id": 0}),
    "deberta": (T.DebertaForSequenceClassification, DEBERTA),
    "deberta-v2": (T.DebertaV2ForSequenceClassification, DEBERTA),
}


def classifier(name):
    kind, entries = CLASSIFIERS[name]
    torch.manual_seed(0)
    model = kind(kind.config_class(**entries, num_labels=3)).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("method", [ms.HyperCloning(width=2), ms.LEMON(width=3)], ids=lambda method: method.name)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_answers_as_before_on_any_text(name, method):
    """Also on texts of other lengths than the proof's, without the decoder's ids, and after stock transformers has loaded it."""
    small = classifier(name)
    big = ms.grow(small, method)
    again = type(big)(type(big.config)(**big.config.to_dict())).eval()
    again.load_state_dict(big.state_dict())
    end = small.config.eos_token_id
    for length in (7, 19):
        text = torch.randint(3, 67, (4, length), generator=torch.Generator().manual_seed(length))
        text[:, -1] = end if end is not None else text[:, -1]
        with torch.no_grad():
            torch.testing.assert_close(again(text).logits, small(text).logits, rtol=2e-3, atol=2e-3)


def test_the_decoder_of_a_classifier_reads_the_text_that_it_classifies():
    inputs = example_inputs(classifier("bart"))
    assert torch.equal(inputs["decoder_input_ids"], inputs["input_ids"])
    assert (inputs["input_ids"] == 2).sum(1).tolist() == [1, 1]  # one end in every row, which is where it answers


def test_the_poolers_width_is_that_of_the_stream():
    big = ms.grow(classifier("deberta-v2"), ms.LEMON(hidden_size=64, num_attention_heads=8))
    assert (big.config.pooler_hidden_size, big.pooler.dense.weight.shape) == (64, (64, 64))
