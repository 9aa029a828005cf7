"""Deep Incubation: hybrids, what is trained in them and what is not, and the network assembled from them."""

import pico
import pytest
import torch
from torch.utils import flop_counter

import meristem as ms
from meristem.anatomy.inputs import example_inputs
from meristem.incubation import Division

FAMILIES = {"llama": "num_hidden_layers", "gpt2": "n_layer", "bert": "num_hidden_layers", "vit": "num_hidden_layers",
            "qwen3": "num_hidden_layers"}  # fmt: skip


def meta_of(family, layers=3, **changes):
    return pico.build(family, **{FAMILIES[family]: layers}, **changes)


def run(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


def test_divisions():
    assert ms.divide(12, 4).depths == (3, 3, 3, 3)
    assert ms.divide(8, 3).depths == (3, 3, 2)
    assert ms.divide(6, 2, costs=[5, 1, 1, 1, 1, 1]).depths == (1, 5)
    division = ms.divide(8, 3, meta_layers=2)
    assert (division.meta_depth, division.num_hidden_layers, division.starts) == (6, 8, (0, 3, 6))
    assert list(division.in_hybrid(1)) == [2, 3, 4]
    for wrong, words in (((4, 5), "2 to 4 modules"), ((4, 1), "2 to 4 modules")):
        with pytest.raises(ms.MeristemError, match=words):
            ms.divide(*wrong)
    with pytest.raises(ms.MeristemError, match="3 entries for 4"):
        ms.divide(4, 2, costs=[1, 1, 1])


def test_balance_is_the_best_there_is():
    costs = [3, 1, 4, 1, 5, 9, 2, 6]
    depths = ms.divide(8, 3, costs=costs).depths
    worst = max(sum(costs[sum(depths[:i]) : sum(depths[: i + 1])]) for i in range(3))
    brute = min(max(sum(costs[:a]), sum(costs[a:b]), sum(costs[b:])) for a in range(1, 7) for b in range(a + 1, 8))
    assert worst == brute


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clone_of_the_metas_own_size_is_the_meta(family):
    meta = meta_of(family)
    division = Division((1, 1, 1))
    inputs = example_inputs(meta)
    incubations = [ms.incubate(meta, division, module, start="clone") for module in range(3)]
    for incubation in incubations:
        assert torch.equal(run(incubation.model, inputs), run(meta, inputs))
    assert torch.equal(run(ms.assemble(incubations), inputs), run(meta, inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_module_changes_and_assembly_takes_it_over(family):
    meta, division = meta_of(family), ms.divide(7, 3)
    inputs, incubations = example_inputs(meta), []
    for module in range(3):
        incubation = ms.incubate(meta, division, module, seed=module)
        hybrid = incubation.model
        before = {name: p.detach().clone() for name, p in hybrid.named_parameters()}
        optimizer = torch.optim.AdamW([p for p in hybrid.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
        hybrid(**inputs).logits.square().mean().backward()
        optimizer.step()
        changed = {name for name, p in hybrid.named_parameters() if not torch.equal(p, before[name])}
        trained = {name for name, p in hybrid.named_parameters() if p.requires_grad}
        assert changed <= trained
        assert all(p.grad is None for p in hybrid.parameters() if not p.requires_grad)
        layers = {name.split(".layers.")[-1].split(".layer.")[-1].split(".h.")[-1].split(".")[0] for name in changed}
        assert {str(layer) for layer in division.in_hybrid(module)} <= layers
        incubations.append(incubation)
    large = ms.assemble(incubations)
    assert ms.Anatomy.of(large).depths == {"layers": 7}
    assert all(p.requires_grad for p in large.parameters())
    again = type(meta)(large.config).eval()
    again.load_state_dict(large.state_dict())
    assert torch.equal(run(large, inputs), run(again, inputs))
    prefix = ms.Anatomy.of(large).blocks[0].prefix
    for module, incubation in enumerate(incubations):
        theirs = incubation.model.get_submodule(prefix)[division.in_hybrid(module)[0]].state_dict()
        ours = large.get_submodule(prefix)[division.starts[module]].state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_front_and_back_go_with_the_first_and_last_module():
    meta, division = meta_of("llama"), ms.divide(6, 3)
    trained = [
        {n for n, p in ms.incubate(meta, division, m).model.named_parameters() if p.requires_grad and "layers" not in n}
        for m in range(3)
    ]
    assert trained == [{"model.embed_tokens.weight"}, set(), {"model.norm.weight", "lm_head.weight"}]
    tied = meta_of("llama", tie_word_embeddings=True)
    names = [
        {n for n, p in ms.incubate(tied, division, m).model.named_parameters() if p.requires_grad and "layers" not in n}
        for m in range(3)
    ]
    assert names == [set(), set(), {"model.norm.weight"}]  # the tied embedding stays the meta's
    vit = ms.incubate(meta_of("vit"), division, 0).model
    assert vit.vit.embeddings.cls_token.requires_grad


def test_the_frozen_parts_cost_no_weight_gradients():
    meta, division = meta_of("llama", hidden_size=64), ms.divide(12, 3)
    inputs = example_inputs(meta)

    def flops(model):
        with flop_counter.FlopCounterMode(display=False) as counter:
            model(**inputs).logits.sum().backward()
        model.zero_grad()
        return counter.get_total_flops()

    middle = ms.incubate(meta, division, 1).model
    part, whole = flops(middle), flops(middle.requires_grad_(True))
    assert part < 0.9 * whole


def test_a_module_learns_against_the_meta():
    meta, division = meta_of("llama"), ms.divide(6, 3)
    incubation = ms.incubate(meta, division, 1)
    tokens = example_inputs(meta)["input_ids"]
    optimizer = torch.optim.AdamW([p for p in incubation.model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(30):
        loss = incubation.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_what_does_not_fit_is_refused():
    meta, division = meta_of("llama"), ms.divide(6, 3)
    with pytest.raises(ms.MeristemError, match="want 3"):
        ms.incubate(meta_of("llama", 2), division, 0)
    with pytest.raises(ms.MeristemError, match="from 0 to 2"):
        ms.incubate(meta, division, 3)
    with pytest.raises(ms.MeristemError, match="random or clone"):
        ms.incubate(meta, division, 0, start="zero")
    with pytest.raises(ms.MeristemError, match="one list of blocks"):
        ms.incubate(pico.build("t5"), division, 0)
    parts = [ms.incubate(meta, division, module) for module in range(3)]
    with pytest.raises(ms.MeristemError, match="once each"):
        ms.assemble(parts[:2])
    with pytest.raises(ms.MeristemError, match="different meta networks"):
        ms.assemble([*parts[:2], ms.incubate(pico.build("llama", 1, num_hidden_layers=3), division, 2)])
    with pytest.raises(ms.MeristemError, match="different divisions"):
        ms.assemble([*parts[:2], ms.incubate(meta, ms.divide(9, 3), 2)])
