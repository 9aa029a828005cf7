"""What is old, copied or fresh is known after any reload, and of no other network."""

from __future__ import annotations

import json

import pico
import pytest
import torch
import transformers
from command_line import meristem

import meristem as ms
from meristem.growth.plans.origins import Units

GROWTHS = {
    "llama": ms.HyperCloning(width=2),
    "gpt2": ms.Net2Net(intermediate_size=190),
    "qwen3": [ms.ZeroPadding(intermediate_size=60), ms.HyperCloning(width=2), ms.IdentityBlocks(depth=2)],
    "gemma3": ms.LEMON(hidden_size=48, num_attention_heads=6, num_key_value_heads=3),
    "t5": ms.Stacking(depth=2),
    "mixtral": ms.IdentityBlocks(depth=2),
}


@pytest.mark.parametrize("family", GROWTHS)
def test_it_survives_being_written_down(family):
    growth = ms.Growth.of(pico.build(family), GROWTHS[family])
    there = growth.provenance
    back = ms.Provenance.of_dict(json.loads(json.dumps(there.as_dict())))
    assert back.counts() == there.counts()
    for name in growth.model.state_dict():
        assert torch.equal(back.labels(name), there.labels(name)), name
    counted = dict.fromkeys(there.counts(), 0)
    for name, _ in growth.model.named_parameters():
        for kind, mask in there.masks(name).items():
            counted[kind] += int(mask.sum())
    assert counted == there.counts()
    assert sum(counted.values()) == growth.model.num_parameters()


def test_runs_of_units_are_what_the_map_says():
    units = Units.of(ms.AxisMap.tile(4, 3))
    assert units.runs == ((0, 4, 0), (0, 4, 1), (0, 4, 1))
    assert str(units) == "old:0+4 copied:0+4 copied:0+4"
    assert Units.parse(str(units)) == units
    assert units.sources().tolist() == [0, 1, 2, 3] * 3
    assert units.labels().tolist() == [0] * 4 + [1] * 8


@pytest.fixture
def grown(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    meristem("grow", tmp_path / "small", tmp_path / "big", "--method", "zero_padding,identity_blocks", "--intermediate-size", "60",
             "--num-hidden-layers", "4")  # fmt: skip
    return tmp_path / "big"


def test_a_reload_knows_it(grown):
    model = transformers.AutoModelForCausalLM.from_pretrained(grown)
    up = "model.layers.0.mlp.up_proj.weight"
    for found in (ms.provenance(grown), ms.provenance(str(grown)), ms.provenance(model)):
        masks = found.masks(up)
        assert masks["old"][:44].all()
        assert masks["fresh"][44:].all()
        assert not masks["copied"].any()
        assert found.mask("model.layers.1.self_attn.o_proj.weight", "fresh").all()
        assert found.mask("model.layers.1.self_attn.q_proj.weight", "copied").all()


def test_inspect_shows_the_shares(grown):
    said = meristem("inspect", grown).stdout
    counts = ms.provenance(grown).counts()
    assert f"old {counts['old'] / sum(counts.values()):.1%} ({counts['old']:,})" in said.replace("\n", " ")


def test_the_provenance_of_another_model_is_refused(grown):
    found = ms.provenance(grown)
    with pytest.raises(
        ms.MeristemError, match=r"another network: .*gate_proj.weight is \(44, 32\) here and \(60, 32\) there"
    ):
        found.check(pico.build("llama", num_hidden_layers=4))
    with pytest.raises(ms.MeristemError, match=r"layers\.2\.\S+ is missing here"):
        found.check(pico.build("llama", intermediate_size=60))


def test_what_records_nothing_says_so(tmp_path, grown):
    pico.build("llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(ms.MeristemError, match="records no provenance"):
        ms.provenance(tmp_path / "plain")
    with pytest.raises(ms.MeristemError, match="the directory that it was loaded from"):
        ms.provenance(pico.build("llama"))
    record = json.loads((grown / "meristem.json").read_text())
    record["provenance"]["steps"][0]["units"] = ["old:0+x"]
    (grown / "meristem.json").write_text(json.dumps(record))
    with pytest.raises(ms.MeristemError, match="cannot be read"):
        ms.provenance(grown)
