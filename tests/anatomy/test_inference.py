"""What inference says, on families whose answer is known, and what it says when it cannot know."""

from __future__ import annotations

import copy

import pico
import pytest
import torch
from torch import nn

import meristem as ms
from meristem.anatomy import Override, probing
from meristem.anatomy.norms import norm_facts
from meristem.anatomy.trace import norm_before_head
from meristem.errors import AnatomyError


def layouts(family: str, suffix: str, **changes) -> list[str]:
    anatomy = ms.Anatomy.of(pico.build(family, **changes))
    tensor = next(t for name, t in anatomy.tensors.items() if name.endswith(suffix))
    return [f"{d.role} {d.layout}" for d in tensor.dimensions]


@pytest.mark.parametrize("family, suffix, expected", [
    ("llama", "q_proj.weight", ["write heads head_dim", "read hidden"]),
    ("llama", "k_proj.weight", ["write kv_heads head_dim", "read hidden"]),
    ("llama", "o_proj.weight", ["write hidden", "read heads head_dim"]),
    ("llama", "down_proj.weight", ["write hidden", "read ffn"]),
    ("llama", "input_layernorm.weight", ["gain hidden"]),
    ("llama", "embed_tokens.weight", ["fixed vocab", "write hidden"]),
    ("qwen2", "k_proj.bias", ["write kv_heads head_dim"]),
    ("qwen3", "q_norm.weight", ["gain head_dim"]),
    ("olmo2", "k_norm.weight", ["gain kv_heads head_dim"]),
    ("phi3", "qkv_proj.weight", ["write heads head_dim + 2 kv_heads head_dim", "read hidden"]),
    ("phi3", "gate_up_proj.weight", ["write 2 ffn", "read hidden"]),
    ("gpt2", "c_attn.weight", ["read hidden", "write heads head_dim + 2 kv_heads head_dim"]),
    ("gpt2", "attn.c_proj.weight", ["read heads head_dim", "write hidden"]),
    ("gpt_neox", "query_key_value.bias", ["write kv_heads (group + 2) head_dim"]),
    ("falcon", "query_key_value.weight", ["write kv_heads (group + 2) head_dim", "read hidden"]),
    ("bloom", "dense_h_to_4h.weight", ["write 4 hidden", "read hidden"]),
    ("mixtral", "experts.gate_up_proj", ["fixed experts", "write 2 ffn", "read hidden"]),
    ("mixtral", "mlp.gate.weight", ["write experts", "read hidden"]),
    ("t5", "relative_attention_bias.weight", ["fixed 32", "write heads"]),
    ("bart", "decoder.layers.0.fc1.weight", ["write decoder_ffn", "read hidden"]),
    ("bart", "encoder_attn.k_proj.weight", ["write decoder_kv_heads decoder_head_dim", "read hidden"]),
    ("vit", "projection.weight", ["write hidden", "read 3", "fixed 4", "fixed 4"]),
    ("vit", "position_embeddings", ["write 1", "write 17", "write hidden"]),
])  # fmt: skip
def test_layouts(family, suffix, expected):
    assert layouts(family, suffix) == expected


@pytest.mark.parametrize("family, sizes, depths", [
    ("falcon", {"kv_heads": 1, "group": 4}, {"layers": 2}),
    ("falcon_new", {"kv_heads": 2, "group": 2}, {"layers": 2}),
    ("gemma", {"kv_heads": 1, "group": 4, "head_dim": 8}, {"layers": 2}),
    ("gpt2", {"ffn": 128, "head_dim": 8}, {"layers": 2}),
    ("t5_gated", {"head_dim": 6}, {"encoder_layers": 2, "decoder_layers": 3}),
    ("bart", {"encoder_kv_heads": 4, "decoder_kv_heads": 8}, {"encoder_layers": 2, "decoder_layers": 2}),
])  # fmt: skip
def test_sizes_and_depths(family, sizes, depths):
    anatomy = ms.Anatomy.of(pico.build(family))
    assert {axis: anatomy.sizes[axis] for axis in sizes} == sizes
    assert anatomy.depths == depths


def test_ties_are_seen():
    tensors = ms.Anatomy.of(pico.build("bart")).tensors
    assert tensors["lm_head.weight"].tied_to == "model.shared.weight"
    assert tensors["model.shared.weight"].tied_to is None


@pytest.mark.parametrize("family, norm", [("gpt2", "transformer.ln_f"), ("t5", "decoder.final_layer_norm"),
                                          ("opt", "model.decoder.final_layer_norm"),
                                          ("bart", "model.decoder.layers.1.final_layer_norm"),
                                          ("bert", "cls.predictions.transform.LayerNorm"), ("vit", None)])  # fmt: skip
def test_the_norm_before_the_head(family, norm):
    assert norm_before_head(pico.build(family)) == norm


def test_norm_facts_are_measured():
    assert norm_facts(nn.LayerNorm(8)).centres
    rms = norm_facts(pico.build("llama").model.norm)
    gemma = norm_facts(pico.build("gemma").model.norm)
    assert (rms.centres, rms.offset) == (False, 0.0)
    assert (gemma.centres, gemma.offset) == (False, 1.0)


def test_the_table_names_every_axis_and_folds_the_blocks():
    text = str(ms.Anatomy.of(pico.build("llama")))
    assert "kv_heads  2     num_key_value_heads" in text
    assert text.count("q_proj.weight") == 1
    assert "model.layers.*.self_attn.q_proj.weight" in text


class Net(nn.Module):
    def __init__(self, hidden: int, ffn: int, odd: int = 0) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, hidden), nn.LayerNorm(hidden)
        self.up, self.down = nn.Linear(hidden, ffn), nn.Linear(ffn, hidden)
        self.head = nn.Linear(hidden, 3)
        self.strange = nn.Parameter(torch.zeros(hidden * hidden + odd)) if odd else None

    def forward(self, x):
        hidden = self.first(x)
        return self.head(self.norm(hidden + self.down(self.up(self.norm(hidden)).relu())))


def test_a_network_outside_transformers_grows_and_is_proven():
    net = Net(8, 12)
    pico.randomise(net)
    anatomy = ms.Anatomy.infer(Net, {"hidden": 8, "ffn": 12})
    assert [str(d.layout) for d in anatomy.tensors["down.weight"].dimensions] == ["hidden", "ffn"]
    x = torch.randn(7, 5)
    big = ms.grow(
        net, ms.HyperCloning(hidden_size=16, intermediate_size=36, noise=0.5), anatomy=anatomy, inputs={"x": x}
    )
    assert big.down.weight.shape == (16, 36)
    torch.testing.assert_close(big(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_shape_without_explanation_is_an_error_that_names_it():
    anatomy = ms.Anatomy.infer(lambda hidden, ffn: Net(hidden, ffn, odd=3), {"hidden": 8, "ffn": 12})
    with pytest.raises(
        AnatomyError, match=r"dimension 0 of strange \(67,\) has a size that .* works out from hidden, ffn"
    ):
        ms.grow(Net(8, 12, odd=3), ms.HyperCloning(width=2), anatomy=anatomy, verify=False)


def test_a_plain_module_needs_an_anatomy():
    with pytest.raises(AnatomyError, match=r"describe it with ms\.Anatomy\.infer"):
        ms.grow(Net(8, 12), ms.HyperCloning(width=2))


def test_a_users_override_is_tried_first():
    override = {"llama": Override(layouts=((r"mlp\.up_proj$", "out", "ffn"),))}
    tensor = ms.Anatomy.of(pico.build("llama"), override).tensors["model.layers.0.mlp.up_proj.weight"]
    assert tensor.dimensions[0].source == "override"


def test_what_was_built_once_is_not_built_again(monkeypatch):
    """Whether a field moves shapes is asked several times in a growth; every attribute of the config is part of the question."""
    built = []
    monkeypatch.setattr(probing, "_ANSWERS", {})
    monkeypatch.setattr(probing, "uninitialised", lambda make: built.append(make) or make())
    model = pico.build("bart")
    wider, other, broken = (copy.deepcopy(model.config) for _ in range(3))
    wider.decoder_ffn_dim, other.dropout, broken.decoder_attention_heads = 104, 0.5, 7
    for _ in range(2):
        shapes = probing.Shapes(type(model), copy.deepcopy(model.config))
        assert not shapes.moves(model.config)
        assert shapes.moves(wider)
        assert not shapes.moves(other)
        assert shapes.moves(broken, unless_built=True)
        assert not shapes.moves(broken)
        assert len(built) == 5  # and the network itself
    assert not probing.Shapes(type(model), wider).moves(wider)
    assert probing.Shapes(type(model), wider).moves(other)
    assert len(built) == 9
    growth = ms.Growth.of(model, ms.IdentityBlocks(num_hidden_layers=3, blocks="encoder"))
    before = len(built)
    again = ms.Growth.of(model, ms.IdentityBlocks(num_hidden_layers=3, blocks="encoder"))
    assert again.certificate == growth.certificate
    assert len(built) == before  # 100 more without what is remembered
