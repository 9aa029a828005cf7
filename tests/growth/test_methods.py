"""The table-driven suite: every method on every family."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pico
import pytest
import torch
from table import FAMILIES, METHODS, WIDER, labelled, method_for, promises

import meristem as ms
from meristem.anatomy.inputs import example_inputs, logits_of, outputs_of
from meristem.growth import METHODS as REGISTERED
from meristem.growth import Growth
from meristem.growth.methods.method import as_list
from meristem.growth.optimizers.block_steps import MISSED
from meristem.growth.optimizers.optimizer import grow_state, named_state

CASES = [(row, family) for row in METHODS for family in FAMILIES]


def cases(test):
    """Every method on every family; the everyday suite has time for each method and each family at least once."""
    return pytest.mark.everyday(seconds=4)(pytest.mark.parametrize("row, family", CASES)(test))


@pytest.fixture(scope="module")
def models():
    """Each family once; methods leave their source as it is."""
    return {family: pico.build(family) for family in FAMILIES}


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    optimizer.zero_grad()
    loss = model(**labelled(model, seed)).loss
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def gap(growth: Growth, inputs: dict) -> float:
    """The largest error of all outputs, hidden states of the small network taken through the dense map of the axis that has grown."""
    ours, theirs = outputs_of(growth.source, inputs), outputs_of(growth.model, inputs)
    assert ours.keys() == theirs.keys()
    errors = []
    for name, a in ours.items():
        b = theirs[name]
        if a.shape == b.shape:
            candidates = [a]
        else:
            assert a.shape[:-1] == b.shape[:-1]
            maps = [plan.axis_map("hidden") for plan in growth.plans]
            candidates = [a.double() @ functools.reduce(torch.matmul, reversed(sides)).double().T
                          for sides in ([m.write.matrix() for m in maps], [m.heard.matrix() for m in maps])]  # fmt: skip
        errors.append(min(float((c - b).abs().max() / c.abs().max()) for c in candidates))
    return max(errors)


@cases
def test_function_and_promise(models, row, family):
    """Preserving methods to 1e-5 in float32; the others say that they are not, and the certificate how far off."""
    small = models[family]
    growth = Growth.of(small, method_for(row, small))
    promised = all(plan.preserves_function for plan in growth.plans)
    assert promised == promises(row, family)
    inputs = example_inputs(small)
    error = gap(growth, inputs)
    if promised:
        assert error <= 1e-5
        assert growth.certificate.holds
    else:
        assert math.isfinite(error)
        assert growth.certificate.relative_error == pytest.approx(error, rel=1e-3, abs=1e-6)


@cases
def test_round_trip_through_stock_transformers(models, row, family, tmp_path):
    grown = ms.grow(models[family], method_for(row, models[family]), verify=False)
    grown.save_pretrained(tmp_path)
    again, info = type(grown).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = example_inputs(grown)
    torch.testing.assert_close(logits_of(again.eval(), inputs), logits_of(grown, inputs), rtol=1e-5, atol=1e-5)


def without_noise(methods):
    """The method, or each of a list, with copies that are alike: only they have a gradient that maps can tell."""
    silenced = [replace(m, noise=0.0) if hasattr(m, "noise") else m for m in as_list(methods)]
    return silenced if isinstance(methods, list) else silenced[0]


def gradients(model: torch.nn.Module, inputs: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


MEAN_PADDED = {"lemon any ratio", "lemon width and depth", "zero padding"}


def stated_difference(row: str, family: str, name: str) -> float:
    """Relative to the tensor's largest gradient, by docs/theory.md, section 2: exact, but for padding with the mean. There a
    LayerNorm spreads the sum of what it gets back over more units than before, and that sum is not in the state; and a head
    that had to be untied has the moments of what it shared with the embedding."""
    if row not in MEAN_PADDED or family not in ("gpt2", "gpt_neox", "vit"):
        return 1e-5
    return 10.0 if family == "gpt2" and name in ("transformer.wte.weight", "lm_head.weight") else 0.1


@cases
def test_the_state_holds_the_true_gradients(row, family):
    """Where a growth keeps the function, a first moment that is the small network's gradient becomes the large one's, entry by
    entry, the second its square, and what has had no gradient before says so in its missed steps."""
    if not promises(row, family):
        pytest.skip("promises nothing")
    small = pico.build(family).double()
    inputs = labelled(small)
    growth = ms.Growth.of(small, without_noise(METHODS[row][0]))
    state = {
        name: {"exp_avg": gradient, "exp_avg_sq": gradient**2, "step": torch.tensor(7.0)}
        for name, gradient in gradients(small, inputs).items()
    }
    for plan in growth.plans:
        state = grow_state(plan, state)
    true = gradients(growth.model, inputs)
    assert set(state) <= set(dict(growth.model.named_parameters()))
    for name, gradient in true.items():
        entries = state[name]
        begins = growth.plans[-1].tensors[name].begins  # then the count begins anew as well
        trained = entries[MISSED] == 0 if MISSED in entries else torch.full_like(gradient, not begins, dtype=torch.bool)
        scale, stated = max(float(gradient.abs().max()), 1e-6), stated_difference(row, family, name)
        for key, expected in (("exp_avg", gradient), ("exp_avg_sq", gradient**2)):
            difference = (entries[key] - expected).abs()[trained]
            assert not difference.numel() or float(difference.max()) <= stated * scale, (name, key)
            assert not entries[key][~trained].any(), (name, key)
        assert int(entries["step"]) == (0 if begins else 7)
        assert MISSED not in entries or bool((entries[MISSED][~trained] == 7).all())


@cases
def test_training_goes_on_from_the_sources_loss(row, family):
    """With the carried optimizer, the first loss is the source's wherever that is promised, and all steps are finite."""
    small = pico.build(family)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-4)
    for seed in range(2):
        train_step(small, optimizer, seed)
    growth = ms.Growth.of(small, method_for(row, small), verify=False)
    carried = growth.grow_optimizer(optimizer)
    losses = [train_step(growth.model, carried, seed) for seed in (5, 6)]
    if promises(row, family):
        still = torch.optim.AdamW(small.parameters(), lr=0.0)
        assert losses[0] == pytest.approx(train_step(small, still, 5), abs=1e-4)
    assert all(torch.isfinite(parameter).all() for parameter in growth.model.parameters())


def test_every_registered_method_has_a_row():
    used = {m.name for method, _ in METHODS.values() for m in as_list(method)}
    of_some_families = {"upcycle", "more_experts"}  # of mixtures: their own files
    assert used | of_some_families >= set(REGISTERED)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lemon_48_to_72_with_4_to_6_heads(family):
    names = ("n_embd", "n_head") if family == "gpt2" else ("hidden_size", "num_attention_heads")
    changes = dict(zip(names, (48, 4), strict=True)) | ({} if family == "gpt2" else {"num_key_value_heads": 4})
    small = pico.build(family, **changes)
    big = ms.grow(small, ms.LEMON(hidden_size=72, num_attention_heads=6))
    inputs = example_inputs(small)
    a, b = logits_of(small, inputs), logits_of(big, inputs)
    assert big.config.hidden_size == 72
    assert float((a - b).abs().max() / a.abs().max()) <= 1e-5


@pytest.mark.parametrize(
    "family, method",
    [
        ("llama", ms.LEMON(hidden_size=48)),
        ("llama", ms.ZeroPadding(hidden_size=48)),
        ("t5", ms.LEMON(hidden_size=48)),
        ("gemma2", ms.LEMON(hidden_size=48)),
    ],
)
def test_eps_and_gains_are_rescaled(family, method):
    """With a deliberately large eps the growth is still exact, which it is only if eps shrinks with the mean square."""
    small = pico.build(family, **{"layer_norm_epsilon" if family == "t5" else "rms_norm_eps": 1e-2})
    inputs = example_inputs(small)
    a, b = logits_of(small, inputs), logits_of(ms.grow(small, method), inputs)
    assert float((a - b).abs().max() / a.abs().max()) <= 1e-5


@pytest.mark.parametrize(
    "method", [ms.LEMON(hidden_size=48, noise=0.1), ms.ZeroPadding(hidden_size=48, intermediate_size=88)]
)
def test_padded_units_wake_up(method):
    """New units are silent at first and must not stay so: after a few steps they have moved."""
    small = pico.build("llama")
    big = ms.grow(small, method)
    before = big.model.embed_tokens.weight.detach()[:, 32:].clone()
    optimizer = torch.optim.SGD(big.parameters(), lr=0.1)
    for seed in range(3):
        train_step(big, optimizer, seed)
    assert (big.model.embed_tokens.weight[:, 32:] - before).abs().max() > 1e-4


def test_aki_takes_new_rows_from_the_next_layer():
    small = pico.build("llama")
    big = ms.grow(small, ms.AKI(intermediate_size=88, duplication="cyclic"), verify=False)
    for layer, following in ((0, 1), (1, 1)):
        gate = big.model.layers[layer].mlp.gate_proj.weight
        torch.testing.assert_close(gate[:44], small.model.layers[layer].mlp.gate_proj.weight)
        torch.testing.assert_close(gate[44:], small.model.layers[following].mlp.gate_proj.weight)


@pytest.mark.parametrize("method, order", [
    (ms.Stacking(depth=2), [0, 1, 2, 0, 1, 2]), (ms.Stacking(depth=2, order="interpolate"), [0, 0, 1, 1, 2, 2]),
    (ms.GradualStacking(layers=2), [0, 1, 2, 1, 2]), (ms.MIDAS(layers=1), [0, 1, 1, 2]),
    (ms.IdentityBlocks(num_hidden_layers=5), [0, 1, 1, 2, 2]),
])  # fmt: skip
def test_layer_orders_and_per_layer_config(method, order):
    """Each new layer takes its source's weights and its place in `layer_types`; layer_idx counts up."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    small = pico.build("qwen3", num_hidden_layers=3, layer_types=kinds, use_sliding_window=True, sliding_window=8)
    big = ms.grow(small, method, verify=False)
    assert big.config.num_hidden_layers == len(order)
    assert big.config.layer_types == [kinds[i] for i in order]
    for new, old in enumerate(order):
        torch.testing.assert_close(
            big.model.layers[new].self_attn.q_proj.weight, small.model.layers[old].self_attn.q_proj.weight
        )
        assert big.model.layers[new].self_attn.layer_idx == new


def test_t5_keeps_its_position_bias_in_the_first_block_only():
    big = ms.grow(pico.build("t5"), ms.Stacking(depth=2), verify=False)
    names = [name for name, _ in big.named_parameters() if "relative_attention_bias" in name]
    assert len(names) == 2
    assert all(".block.0." in name for name in names)


def test_magnitude_selection_keeps_the_largest_units():
    small = pico.build("llama")
    strong = [3, 7, 40]
    for layer in small.model.layers:
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.weight.data[strong] *= 100
    big = ms.shrink(small, ms.WeightSelection(intermediate_size=3, selection="magnitude"))
    torch.testing.assert_close(big.model.layers[0].mlp.up_proj.weight, small.model.layers[0].mlp.up_proj.weight[strong])


def test_selection_undoes_cloning():
    small = pico.build("qwen3")
    big = ms.grow(small, ms.ZeroPadding(intermediate_size=60))
    back = ms.shrink(big, ms.WeightSelection(intermediate_size=44, selection="first"))
    inputs = example_inputs(small)
    torch.testing.assert_close(logits_of(back, inputs), logits_of(small, inputs))


def test_multi_stage_growth_carries_the_state_through():
    """32 -> 48 -> 64 with the optimizer, as a list and one by one: the same network and the same state."""
    small = pico.build("llama")
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
    train_step(small, optimizer)
    stages = [ms.LEMON(hidden_size=48), ms.LEMON(hidden_size=64, intermediate_size=60)]
    at_once = ms.grow(small, stages)
    middle = ms.grow(small, stages[0])
    one_by_one = ms.grow(middle, stages[1])
    for name, parameter in one_by_one.named_parameters():
        torch.testing.assert_close(at_once.get_parameter(name), parameter)
    first = ms.grow_optimizer(optimizer, small, middle, stages[0])
    second = named_state(ms.grow_optimizer(first, middle, one_by_one, stages[1]), one_by_one)
    for name, entries in named_state(ms.grow_optimizer(optimizer, small, at_once, stages), at_once).items():
        torch.testing.assert_close(entries["exp_avg"], second[name]["exp_avg"])


@pytest.mark.parametrize("family, method, message", [
    ("llama", ms.LEMON(hidden_size=24), "lemon grows: asked for hidden of 24, the network has 32"),
    ("llama", ms.WeightSelection(hidden_size=64), "weight_selection shrinks: asked for hidden of 64, the network has 32"),
    ("llama", ms.WeightSelection(), "nothing to shrink"),
    ("gpt2", ms.LEMON(hidden_size=44), "head_dim has to stay 8.*hidden_size=32 would work$"),
    ("gpt2", ms.LEMON(hidden_size=48), "n_head=4; hidden_size=32 would work; or n_head=6 with hidden_size=48"),
    ("llama", ms.Stacking(depth=1), "nothing to grow"),
    ("llama", ms.Stacking(depth=1.5), "depth must be a whole number of at least 1, got 1.5"),
    ("llama", ms.GradualStacking(layers=3), "layers must be between 1 and 2"),
    ("llama", ms.MIDAS(layers=0), "layers must be between 1 and 2"),
    ("llama", ms.IdentityBlocks(num_hidden_layers=1), "the network has 2; the nearest target that works is 2"),
])  # fmt: skip
def test_refused(family, method, message):
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(pico.build(family), method)


def test_shrink_zero_pad_perturb_is_a_share_of_the_old_weights_and_noise_at_the_initial_scale():
    small = pico.build("llama", initializer_range=0.03)
    plain = ms.grow(small, ms.ShrinkZeroPadPerturb(**WIDER, shrink=0.25, perturb=0.0), verify=False)
    name = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(plain.get_parameter(name)[:32, :32], small.get_parameter(name) / 4)
    assert not plain.get_parameter(name)[32:].any()
    torch.testing.assert_close(plain.model.norm.weight[:32], small.model.norm.weight)
    for mup, std in ((False, 0.03), (True, 0.03 * (32 / 48) ** 0.5)):
        noisy = ms.grow(small, ms.ShrinkZeroPadPerturb(**WIDER, shrink=0.25, mup=mup), verify=False)
        noise = noisy.get_parameter(name) - plain.get_parameter(name)
        assert float(noise.std()) == pytest.approx(std, rel=0.1)
    with pytest.raises(ms.MeristemError, match="shrink is a factor between 0 and 1, got 2"):
        ms.grow(small, ms.ShrinkZeroPadPerturb(**WIDER, shrink=2))
