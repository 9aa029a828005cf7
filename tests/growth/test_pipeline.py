"""One pipeline: what a growth finds out about a network is there for everything that comes after it."""

from __future__ import annotations

import pico
import pytest
import torch
from table import METHODS, method_for
from torch import nn

import meristem as ms
from meristem.anatomy.inputs import example_inputs, logits_of
from meristem.growth.methods.method import as_list
from meristem.growth.plans.target import grown_anatomy


def deberta(**changes) -> nn.Module:
    """Its fused in_proj holds query, key and value for each head, an order that only a trial tells."""
    from transformers import DebertaConfig, DebertaForMaskedLM

    config = DebertaConfig(
        vocab_size=67, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=44,
        max_position_embeddings=64, relative_attention=True, pos_att_type=["c2p", "p2c"], **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DebertaForMaskedLM(config)
    pico.randomise(model)
    return model.eval()


def longt5() -> nn.Module:
    """Its tied head divides by sqrt(d_model) inside the forward pass."""
    from transformers import LongT5Config, LongT5ForConditionalGeneration

    config = LongT5Config(
        vocab_size=67, d_model=32, d_kv=8, d_ff=44, num_layers=2, num_decoder_layers=2, num_heads=4, local_radius=7,
        decoder_start_token_id=0, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LongT5ForConditionalGeneration(config)
    pico.randomise(model)
    return model.eval()


def relative_error(small: nn.Module, big: nn.Module) -> float:
    inputs = example_inputs(small)
    a, b = logits_of(small, inputs), logits_of(big, inputs)
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert", "mixtral", "phi3", "falcon_new"])
@pytest.mark.parametrize(
    "row", ["hypercloning", "net2net uneven", "lemon width and depth", "interpolation", "weight selection"]
)
def test_the_derived_anatomy_is_the_inferred_one(family, row):
    small = pico.build(family)
    method = as_list(method_for(METHODS[row][0], small) if isinstance(METHODS[row][0], ms.LiGO) else METHODS[row][0])[0]
    if family == "falcon_new" and row in ("net2net uneven", "lemon width and depth"):
        pytest.skip("its key-value heads do not go from 2 to 3")
    plan = method.plan(ms.Anatomy.of(small), small)
    derived, inferred = grown_anatomy(plan), ms.Anatomy.of(plan.target.build(plan.target.sizes, plan.target.depths))
    assert derived.sizes == inferred.sizes
    assert derived.blocks == inferred.blocks
    assert derived.norms == inferred.norms
    assert set(derived.tensors) == set(inferred.tensors)
    for name, tensor in inferred.tensors.items():
        ours = derived.tensors[name]
        assert (ours.shape, ours.block, ours.tied_to) == (tensor.shape, tensor.block, tensor.tied_to), name
        assert [(str(d.layout), d.role) for d in ours.dimensions] == [
            (str(d.layout), d.role) for d in tensor.dimensions
        ]


def test_what_one_growth_has_settled_the_next_one_knows():
    small = deberta()
    once = ms.Growth.of(small, ms.HyperCloning(width=2))
    settled = [d.source for t in once.anatomy.tensors.values() if "in_proj" in t.name for d in t.dimensions]
    assert "trial" in settled
    twice = ms.grow(once, ms.HyperCloning(width=2))
    assert relative_error(small, twice) <= 1e-5
    at_once = ms.grow(small, [ms.HyperCloning(width=2)] * 2)
    assert relative_error(small, at_once) <= 1e-5
    for name, parameter in at_once.named_parameters():
        torch.testing.assert_close(parameter, twice.get_parameter(name))


def test_methods_that_promise_nothing_use_the_settled_order_too():
    """Net2Net with uneven copies is 0.24 off on deberta, and 0.70 with query, key and value in the wrong order."""
    small = deberta()
    uneven = ms.Growth.of(small, ms.Net2Net(hidden_size=48, num_attention_heads=6))
    assert uneven.certificate.relative_error < 0.4
    cloned = ms.grow(small, ms.HyperCloning(width=2))
    back = ms.shrink(
        cloned, ms.WeightSelection(hidden_size=32, num_attention_heads=4, intermediate_size=44, selection="first")
    )
    rows = cloned.deberta.encoder.layer[0].attention.self.in_proj.weight.unflatten(0, (8, 3, 8))[:4, :, :, :32]
    torch.testing.assert_close(back.deberta.encoder.layer[0].attention.self.in_proj.weight, rows.flatten(0, 2))


def test_aki_knows_the_factor_before_the_head():
    """longt5 divides its logits by sqrt(d_model): the head of a network twice as wide has to be sqrt(2) times as large."""
    small = longt5()
    growth = ms.Growth.of(small, ms.AKI(width=2, duplication="cyclic"))
    clone = ms.Growth.of(small, ms.HyperCloning(width=2))
    norm = "decoder.final_layer_norm.weight"
    assert clone.certificate.relative_error <= 1e-5
    torch.testing.assert_close(growth.model.get_parameter(norm), clone.model.get_parameter(norm))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    tokens = torch.randint(3, 67, (4, 16), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("through", ["the growth", "the verb"])
def test_moments_of_a_settled_network_are_in_order(through):
    small = deberta().double()
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3, eps=1e-10)
    for seed in range(5):
        step(small, optimizer, seed)
    method = ms.HyperCloning(width=2, noise=0.0)
    growth = ms.Growth.of(small, method)
    if through == "the growth":
        carried = growth.grow_optimizer(optimizer, scale_learning_rate=True)
    else:
        carried = ms.grow_optimizer(optimizer, small, growth.model, method, scale_learning_rate=True)
    gaps = [abs(step(small, optimizer, s) - step(growth.model, carried, s)) for s in range(5, 25)]
    assert max(gaps) < 1e-6


def test_an_optimizer_for_another_network_is_refused():
    small = pico.build("llama")
    optimizer = torch.optim.AdamW(small.parameters())
    big = ms.grow(small, ms.HyperCloning(width=2))
    big.model.layers[1].mlp.up_proj.weight.data += 0.1
    with pytest.raises(ms.MeristemError, match=r"not what hypercloning makes.*layers\.1\.mlp\.up_proj\.weight"):
        ms.grow_optimizer(optimizer, small, big, ms.HyperCloning(width=2))


class Residual(nn.Module):
    """A network outside transformers whose parts are named as its author liked."""

    def __init__(self, hidden: int, ffn: int, blocks: int) -> None:
        super().__init__()
        self.inlet = nn.Linear(5, hidden)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(hidden), "up": nn.Linear(hidden, ffn), "down": nn.Linear(ffn, hidden)})
            for _ in range(blocks)
        )
        self.norm, self.outlet = nn.LayerNorm(hidden), nn.Linear(hidden, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = x + block["down"](torch.relu(block["up"](block["norm"](x))))
        return self.outlet(self.norm(x))


@pytest.mark.parametrize("methods", [
    [ms.HyperCloning(width=2, noise=0.1)] * 2,
    [ms.HyperCloning(width=2), ms.LEMON(hidden_size=40, intermediate_size=70)],
    [ms.LEMON(hidden_size=24, intermediate_size=30), ms.IdentityBlocks(depth=2), ms.HyperCloning(width=2)],
])  # fmt: skip
def test_several_methods_on_a_network_outside_transformers(methods):
    torch.manual_seed(0)
    small = Residual(16, 20, 2).eval()
    anatomy = ms.Anatomy.infer(Residual, {"hidden": 16, "ffn": 20}, {"blocks": 2})
    inputs = {"x": torch.randn(8, 5)}
    growth = ms.Growth.of(small, methods, anatomy=anatomy, inputs=inputs)
    assert growth.certificate.holds
    torch.testing.assert_close(growth.model(**inputs), small(**inputs), rtol=1e-4, atol=1e-5)
    further = ms.grow(growth, ms.HyperCloning(width=2), inputs=inputs)
    torch.testing.assert_close(further(**inputs), small(**inputs), rtol=1e-4, atol=1e-5)


def test_overrides_of_a_user_survive_to_the_end():
    small = deberta()
    mine = ms.Override(layouts=((r"in_proj", "out", "heads 3 head_dim"),))
    anatomy = ms.Anatomy.of(small, {"deberta": mine})
    growth = ms.Growth.of(small, [ms.HyperCloning(width=2), ms.Net2Net(intermediate_size=100)], anatomy=anatomy)
    assert growth.anatomy.override == mine
    kept = [d.source for t in growth.anatomy.tensors.values() if "in_proj.weight" in t.name for d in t.dimensions[:1]]
    assert kept == ["override"] * 2


def test_growths_fuse_and_shrink_with_what_they_know():
    small = deberta()
    growth = ms.Growth.of(small, ms.HyperCloning(width=2))
    fusion = ms.fuse_with_certificate([growth, growth])
    assert fusion.certificate.holds
    assert {
        d.source
        for d in fusion.plans[0].source.tensors["deberta.encoder.layer.0.attention.self.in_proj.weight"].dimensions
    } >= {"trial"}
    halved = ms.shrink(
        growth, ms.WeightSelection(hidden_size=32, num_attention_heads=4, intermediate_size=44, selection="first")
    )
    assert halved.config.hidden_size == 32


def test_flags_of_the_source_survive():
    small = pico.build("llama").train()
    small.model.embed_tokens.weight.requires_grad_(False)
    small.activation_checkpointing_enable()
    big = ms.grow(small, [ms.HyperCloning(width=2), ms.Stacking(depth=2)])
    frozen = {name for name, parameter in big.named_parameters() if not parameter.requires_grad}
    assert frozen == {"model.embed_tokens.weight"}
    assert big.is_activation_checkpointing
    assert big.training


def test_provenance_of_a_list_of_methods():
    small = pico.build("llama")
    growth = ms.Growth.of(
        small, [ms.ZeroPadding(intermediate_size=60), ms.HyperCloning(width=2), ms.IdentityBlocks(depth=2)]
    )
    up, norm = "model.layers.{}.mlp.up_proj.weight", "model.norm.weight"
    provenance = growth.provenance
    old = provenance.mask(up.format(0), "old")
    assert old.shape == (120, 64)
    assert old.sum() == 44 * 32
    assert old[:44, :32].all()
    fresh = provenance.mask(up.format(0), "fresh")
    assert fresh.sum() == 2 * 16 * 64
    assert fresh[44:60].all()
    assert fresh[104:].all()
    assert not provenance.mask(up.format(1), "old").any()  # the identity block behind block 0
    assert provenance.mask("model.layers.1.mlp.down_proj.weight", "fresh").all()
    assert provenance.mask(norm, "copied").tolist() == [False] * 32 + [True] * 32
    assert provenance.counts()["old"] == sum(p.numel() for p in small.parameters())
    with pytest.raises(ms.MeristemError, match=r"no tensor 'model\.normal'"):
        provenance.labels("model.normal")


def test_old_entries_hold_the_small_network():
    """Wherever nothing is scaled, the old entries are the small network's own numbers, in order."""
    small = pico.build("llama")
    growth = ms.Growth.of(small, ms.ZeroPadding(intermediate_size=60))
    for name, parameter in small.named_parameters():
        mask = growth.provenance.mask(name, "old")
        assert torch.equal(growth.model.get_parameter(name)[mask], parameter.flatten()), name
