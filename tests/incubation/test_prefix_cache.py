"""Hybrids whose frozen prefix is run once for each example."""

import pico
import pytest
import torch
from test_incubation import meta_of

import meristem as ms
from meristem.anatomy.inputs import example_inputs

NO_DROPOUT = {
    "gpt2": {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
    "bert": {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
}


def losses(incubation, batches, cached):
    model = incubation.model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def train():
        for batch in batches:
            loss = model(**batch).logits.square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield float(loss.detach())

    if not cached:
        return list(train()), None
    with ms.cached_prefix(incubation) as cache:
        return list(train()), cache


@pytest.mark.parametrize(
    "family, module", [("llama", 1), ("llama", 2), ("gpt2", 2), ("bert", 1), ("vit", 2), ("gemma3", 1)]
)
def test_training_is_the_same_bit_for_bit(family, module):
    meta = pico.build(family) if family == "gemma3" else meta_of(family, **NO_DROPOUT.get(family, {}))
    depth = ms.Anatomy.of(meta).blocks[0].length
    division = ms.divide(2 * depth, depth)
    first, second = (example_inputs(meta, batch_size=4, seed=seed) for seed in (0, 1))
    mixed = {name: torch.cat([first[name][2:], second[name][:2]]) for name in first}
    batches = [first, second, first, mixed, second, first]
    plain, _ = losses(ms.incubate(meta, division, module), batches, cached=False)
    remembered, cache = losses(ms.incubate(meta, division, module), batches, cached=True)
    assert remembered == plain
    assert (cache.misses, cache.hits) == (2, 4)
    assert len(cache.known) == 8


def test_the_prefix_is_not_run_again():
    incubation = ms.incubate(meta_of("llama"), ms.divide(6, 3), 2)
    calls = []
    incubation.model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    inputs = example_inputs(incubation.model)
    incubation.model.train()(**inputs)  # what blocks return is known from now on
    with ms.cached_prefix(incubation):
        for _ in range(3):
            incubation.model(**inputs)
        before = len(calls)
        incubation.model(**inputs)
        assert len(calls) == before
        incubation.model.eval()(**inputs)
        assert len(calls) == before + 1
        incubation.model.train()
    assert "call" not in vars(type(incubation.model))
    incubation.model(**inputs)
    assert len(calls) == before + 2


def test_what_cannot_be_cached_is_refused():
    division = ms.divide(6, 3)
    noisy = ms.incubate(meta_of("gpt2", resid_pdrop=0.5), division, 1)
    inputs = example_inputs(noisy.model)
    with ms.cached_prefix(noisy), pytest.raises(ms.MeristemError, match="random in training"):
        noisy.model(**inputs)
    small = ms.incubate(meta_of("llama"), division, 1)
    with ms.cached_prefix(small, max_bytes=100), pytest.raises(ms.MeristemError, match="max_bytes is 100"):
        small.model(**inputs)
    t5 = ms.incubate(pico.build("t5", num_layers=2, num_decoder_layers=1), ms.divide([4, 3], 3), 1)
    with pytest.raises(ms.MeristemError, match="one list of blocks; this network has 2"), ms.cached_prefix(t5):
        pass
