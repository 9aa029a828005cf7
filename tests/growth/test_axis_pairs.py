"""The axes that `--like` brings, with everything that stands beside a growth: FSDP2, `fuse`, LiGO, `shrink`, streaming, gradients."""

from __future__ import annotations

from pathlib import Path

import pico
import pytest
import torch
import transformers
from axes_worker import GROWTHS
from processes import losses_of
from test_stream import gap

import meristem as ms
from meristem.anatomy.streamed import weights_of
from meristem.checkpoints import open_streamed
from meristem.growth import Growth
from meristem.growth.fuse import fuse_with_certificate
from meristem.growth.tensors.apply import grow_tensor

WORKER = Path(__file__).parent / "axes_worker.py"
# what -> (family, changes of its config, sizes)
AXES = {
    "stream scaled": ("llama", {}, {"hidden_size": 48}),
    "stream scaled, LayerNorm": ("gpt2", {}, {"hidden_size": 40, "num_attention_heads": 4}),
    "head_dim": ("llama", {}, {"head_dim": 16}),
    "head_dim under per-head norms": ("qwen3", {}, {"head_dim": 16}),
    "head_dim without rotary positions": ("t5", {}, {"head_dim": 12}),
    "regrouped": ("llama", {}, {"num_attention_heads": 8, "num_key_value_heads": 8}),
    "vocabulary": ("llama", {}, {"vocab_size": 80}),
    "vocabulary, tied": ("llama", {"tie_word_embeddings": True}, {"vocab_size": 80}),
    "positions": ("gpt2", {}, {"max_position_embeddings": 96}),
}  # fmt: skip
FITTED = [row for row in AXES if row.startswith("stream") or row == "regrouped"]


def grown(row: str, noise: float = 0.0):
    family, changes, sizes = AXES[row]
    small = pico.build(family, **changes)
    return small, Growth.of(small, ms.LEMON(**sizes, noise=noise))


@pytest.mark.dist
def test_sharded_networks_grow_as_whole_ones(tmp_path):
    """Weights, optimizer state, and the weights a step later, of the same bits: that step's gradients are means of equal numbers."""
    apart = [float(number) for number in losses_of(WORKER, "axes", 2, tmp_path)]
    assert len(apart) == 3 * len(GROWTHS)
    assert max(apart) <= 1e-6


@pytest.mark.parametrize("row", AXES)
def test_streamed_networks_grow_as_whole_ones(row, tmp_path):
    small, growth = grown(row, noise=0.1)
    small.save_pretrained(tmp_path)
    sizes = AXES[row][2]
    streamed = Growth.of(open_streamed(tmp_path), ms.LEMON(**sizes, noise=0.1))
    assert streamed.certificate.holds
    made = weights_of(streamed.model)
    assert all(torch.equal(made[name], tensor) for name, tensor in growth.model.state_dict().items())


@pytest.mark.parametrize("row", AXES)
def test_growths_fuse_with_themselves(row):
    small, growth = grown(row)
    assert gap(small, ms.fuse([growth, growth])) <= 1e-5


DIFFERENT = [
    row for row in AXES if not row.startswith("stream") and row not in ("regrouped", "head_dim under per-head norms")
]


@pytest.mark.parametrize("row", DIFFERENT)
def test_unlike_parents_fuse_once_they_agree(row):
    """The refusal names the growth that makes them agree, and with it the fusion is the mean of their logits."""
    small, growth = grown(row)
    family, changes, sizes = AXES[row]
    (name, size), other = next(iter(sizes.items())), pico.build(family, seed=7, **_configured(family, changes, sizes))
    with pytest.raises(ms.MeristemError, match=f"it must be the same in both. Grow network 1 first, by {name}={size}"):
        ms.fuse([small, other])
    with pytest.raises(ms.MeristemError, match=f"Grow network 2 first, by {name}={size}"):
        ms.fuse([other, small])
    fusion = fuse_with_certificate([growth, other], ms.DeepFusion(norm="grouped", allow_differences=True))
    assert fusion.exact
    assert fusion.certificate.relative_error < 1e-5


def _configured(family: str, changes: dict, sizes: dict) -> dict:
    names = {"head_dim": "d_kv"} if family == "t5" else {}
    return {**changes, **{names.get(name, name): size for name, size in sizes.items()}}


def test_parents_in_other_groups_fuse_once_they_agree():
    small = pico.build("llama", head_dim=8)
    other = pico.build("llama", seed=7, num_attention_heads=4, num_key_value_heads=4, head_dim=8)
    with pytest.raises(ms.MeristemError, match="Grow network 1 first, by num_attention_heads=4, num_key_value_heads=4"):
        ms.fuse([small, other])
    growth = Growth.of(small, ms.LEMON(num_attention_heads=4, num_key_value_heads=4))
    fusion = fuse_with_certificate([growth, other], ms.DeepFusion(norm="grouped"))
    assert fusion.exact
    assert fusion.certificate.relative_error < 1e-5


def patterns(model: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    tokens = torch.stack([torch.arange(start, start + 16) for start in (3, 11, 20, 35)])
    return [{"input_ids": tokens, "labels": tokens}]


@pytest.mark.parametrize("row", FITTED)
def test_ligo_starts_at_the_function_on_new_axes_and_goes_downhill(row):
    family, changes, sizes = AXES[row]
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    small = pico.build(family, **changes, **dropout)
    with torch.no_grad():
        before = float(small(**patterns(small)[0]).loss)
    start = ms.LiGO(**sizes, steps=1, learning_rate=0.0).fit(small, patterns(small))
    assert start.losses[0] == pytest.approx(before, abs=1e-5)
    assert gap(small, ms.grow(small, start)) <= 1e-5
    fitted = ms.LiGO(**sizes, steps=20, learning_rate=3e-3).fit(small, patterns(small))
    big = ms.grow(small, fitted)
    with torch.no_grad():
        after = float(big(**patterns(small)[0]).loss)
    assert after < before - 0.1


def test_ligo_keeps_maps_where_units_have_places():
    """head_dim and vocabulary keep their maps beside a width that is fitted, and alone leave nothing to fit."""
    small = pico.build("qwen3")
    sizes = {"hidden_size": 48, "head_dim": 16, "vocab_size": 80}
    start = ms.LiGO(**sizes, steps=1, learning_rate=0.0).fit(small, patterns(small))
    assert set(start.write) == {"hidden"}
    assert gap(small, ms.grow(small, start)) <= 1e-5
    fitted = ms.LiGO(**sizes, steps=5, learning_rate=1e-2).fit(small, patterns(small))
    queries = ms.grow(small, fitted).model.layers[0].self_attn.q_proj.weight.view(4, 16, 48)
    assert not queries[:, 1::2].any()  # new units of a head
    with pytest.raises(
        ms.MeristemError, match="ligo: nothing to fit: head_dim, vocab keep fixed maps; name further sizes"
    ):
        ms.LiGO(head_dim=16, vocab_size=80).fit(small, patterns(small))


@pytest.mark.parametrize("row", [row for row in AXES if row != "regrouped"])
def test_shrink_is_the_way_back(row):
    """The silent units go: weight for weight the network that had grown."""
    small, growth = grown(row, noise=0.1)
    old = {axis: size for axis, size in ms.Anatomy.of(small).sizes.items() if size != growth.anatomy.sizes[axis]}
    back = ms.shrink(growth.model, ms.WeightSelection(sizes=old, selection="first", readers="silent"))
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_shrink_takes_back_copies_and_silent_units_in_turn():
    small = pico.build("qwen3")
    sizes = {"hidden_size": 80, "head_dim": 16, "intermediate_size": 88, "vocab_size": 80}
    big = ms.grow(small, ms.LEMON(**sizes, noise=0.0))
    silent = ms.WeightSelection(hidden_size=64, head_dim=8, vocab_size=67, selection="first", readers="silent")
    copies = ms.WeightSelection(hidden_size=32, intermediate_size=44, selection="first", readers="rescaled")
    back = ms.shrink(big, [silent, copies])
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_shrink_keeps_a_tied_head_tied(family):
    small = pico.build(family, tie_word_embeddings=True)
    big = ms.grow(small, ms.HyperCloning(2, noise=0.0))
    sizes = {axis: size for axis, size in ms.Anatomy.of(small).sizes.items() if size != ms.Anatomy.of(big).sizes[axis]}
    back = ms.shrink(big, ms.WeightSelection(sizes=sizes, selection="first", readers="rescaled"))
    assert back.config.tie_word_embeddings
    assert gap(small, back) <= 1e-5


def test_shrink_keeps_frequencies_tokens_and_places():
    """Whatever the selection: the units that turn by the smaller head's frequencies, and the first rows."""
    large = pico.build("llama", head_dim=16)
    small = ms.shrink(large, ms.WeightSelection(head_dim=8, vocab_size=50, selection="magnitude"))
    old = large.model.layers[1].self_attn.k_proj.weight.view(2, 16, 32)
    assert torch.equal(small.model.layers[1].self_attn.k_proj.weight.view(2, 8, 32), old[:, ::2])
    assert torch.equal(small.model.embed_tokens.weight, large.model.embed_tokens.weight[:50])
    assert (small.config.head_dim, small.config.vocab_size) == (8, 50)
    gpt2 = pico.build("gpt2")
    fewer = ms.shrink(gpt2, ms.WeightSelection(max_position_embeddings=48, hidden_size=16, num_attention_heads=4))
    assert torch.equal(fewer.transformer.wpe.weight, gpt2.transformer.wpe.weight[:48, ::2])
    assert (fewer.config.n_embd, fewer.config.n_head, fewer.config.n_positions) == (16, 4, 48)


@pytest.mark.parametrize("changes, options, message", [
    ({"head_dim": 16}, {"head_dim": 12}, "table of head_dim 16 does not hold the frequencies of head_dim 12.* a divisor works if positions are not scaled: 8"),
    ({"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8}, {"num_attention_heads": 4, "num_key_value_heads": 2},
     "4 heads on 2 key-value heads would put query heads on .* not trained with; 2 heads on 2 would work"),
    ({}, {"head_dim": 16}, "shrinks: asked for head_dim of 16, the network has 8; the nearest target that works is 8"),
    ({}, {"vocab_size": 0}, "vocab must be a positive whole number, got 0"),
    ({}, {"max_position_embeddings": 8}, "llama has no learned positions|has no axis 'positions'"),
])  # fmt: skip
def test_what_cannot_shrink(changes, options, message):
    with pytest.raises(ms.MeristemError, match=message):
        ms.shrink(pico.build("llama", **changes), ms.WeightSelection(**options))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of an objective that looks at the old tokens alone."""
    tokens = torch.arange(3, 35).view(2, 16)
    model.zero_grad()
    logits = model(input_ids=tokens).logits[..., :67].double()
    (
        logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("row", [row for row in AXES if row.startswith(("vocabulary", "positions"))])
def test_gradients_of_old_tokens_and_places_are_the_true_ones(row):
    """On every entry, new rows included, whose gradient is zero."""
    family, changes, sizes = AXES[row]
    small = pico.build(family, **changes).double()
    growth = Growth.of(small, ms.LEMON(**sizes, noise=0.0))
    ours, theirs = gradients(small), gradients(growth.model)
    for name, plan in growth.plans[0].tensors.items():
        torch.testing.assert_close(
            grow_tensor(plan, ours.__getitem__, "gradient"), theirs[name], rtol=1e-6, atol=1e-8, msg=name
        )


@pytest.mark.parametrize("method", [ms.LEMON, ms.ZeroPadding])
def test_other_readers_of_the_last_norm_do_not_see_the_factor_of_a_tied_head(method):
    """The second head of GPT-2 answers as before; it was sqrt(32 / 48) times as loud."""
    config = transformers.GPT2Config(vocab_size=67, n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=1)
    small = transformers.GPT2DoubleHeadsModel(config).eval()
    pico.randomise(small)
    large = ms.grow(small, method(hidden_size=48, num_attention_heads=6))
    assert large.lm_head.weight is large.transformer.wte.weight
    tokens = torch.randint(67, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (model(input_ids=tokens, mc_token_ids=torch.full((2, 3), 11)) for model in (small, large))
    torch.testing.assert_close(theirs.logits, ours.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(theirs.mc_logits, ours.mc_logits, atol=1e-5, rtol=1e-4)


def test_linear_attention_that_follows_the_stream_names_what_would_work():
    config = transformers.AutoConfig.for_model(
        "qwen3_next", hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=67, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    small = transformers.AutoModelForCausalLM.from_config(config).eval()
    pico.randomise(small)
    with pytest.raises(ms.MeristemError, match="as to 64; --size hidden=48 grows that axis alone"):
        ms.grow(small, ms.LEMON(hidden_size=48))
    assert ms.Growth.of(small, ms.LEMON(sizes={"hidden": 48})).certificate.holds
