"""Encoder and decoder grow apart: lists of blocks and axes by their scope; and which layers are new is told."""

from __future__ import annotations

import json

import pico
import pytest
import torch
from command_line import meristem

import meristem as ms
from meristem.anatomy.inputs import example_inputs

DEPTH_METHODS = {
    "stacking": ms.Stacking,
    "gradual_stacking": ms.GradualStacking,
    "midas": ms.MIDAS,
    "identity_blocks": ms.IdentityBlocks,
    "lemon": ms.LEMON,
}


def depths(model) -> tuple[int, int]:
    config = model.config
    if config.model_type == "t5":
        assert (len(model.encoder.block), len(model.decoder.block)) == (config.num_layers, config.num_decoder_layers)
        return config.num_layers, config.num_decoder_layers
    assert len(model.model.encoder.layers) == config.encoder_layers
    assert len(model.model.decoder.layers) == config.decoder_layers
    return config.encoder_layers, config.decoder_layers


@pytest.mark.parametrize("name", DEPTH_METHODS)
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_each_list_of_blocks_by_itself(family, name):
    small = pico.build(family)
    encoder, decoder = depths(small)
    method = DEPTH_METHODS[name]
    one = ms.grow(small, method(num_hidden_layers=decoder + 1, blocks="decoder"))
    assert depths(one) == (encoder, decoder + 1)
    apart = ms.grow(small, method(depths={"encoder_layers": encoder + 2, "decoder_layers": decoder + 1}))
    assert depths(apart) == (encoder + 2, decoder + 1)
    rest = ms.grow(small, method(num_hidden_layers=4, depths={"decoder_layers": decoder + 1}))
    assert depths(rest) == (4, decoder + 1)


@pytest.mark.parametrize("options", [{"depth": 2, "blocks": "encoder"}, {"depths": {"encoder_layers": 4}}])
def test_ligo_learns_the_depth_of_one_list(options):
    small = pico.build("t5")
    batch = {**example_inputs(small), "labels": torch.randint(3, 60, (2, 6))}
    batch.pop("decoder_input_ids", None)
    batch["labels"] = batch["labels"][: batch["input_ids"].shape[0]]
    fitted = ms.LiGO(**options, steps=2).fit(small, [batch])
    assert {axis: tuple(mixture.shape) for axis, mixture in fitted.mixture.items()} == {"encoder_layers": (4, 2)}
    assert depths(ms.grow(small, fitted)) == (4, 2)


def test_a_list_of_layers_for_the_decoder_alone():
    small = pico.build("bart")
    encoder, _ = depths(small)
    grown = ms.grow(small, ms.Stacking(layers="0,0,1", blocks="decoder"))
    assert depths(grown) == (encoder, 3)
    ours, theirs = small.model.decoder.layers, grown.model.decoder.layers
    for new, old in enumerate([0, 0, 1]):
        assert torch.equal(theirs[new].fc1.weight, ours[old].fc1.weight)


def test_widths_by_scope_keep_the_function():
    small = pico.build("bart")
    before = small.config.encoder_ffn_dim, small.config.decoder_ffn_dim
    wide = ms.Growth.of(small, ms.LEMON(sizes={"decoder_ffn": before[1] + 9}))
    assert (wide.model.config.encoder_ffn_dim, wide.model.config.decoder_ffn_dim) == (before[0], before[1] + 9)
    assert wide.certificate.relative_error < 1e-6
    narrow = ms.shrink(small, ms.WeightSelection(sizes={"encoder_ffn": 20}, depths={"decoder_layers": 1}))
    assert (narrow.config.encoder_ffn_dim, narrow.config.decoder_ffn_dim) == (20, before[1])
    assert depths(narrow) == (depths(small)[0], 1)


@pytest.mark.parametrize("method, message", [
    (ms.LEMON(depths={"decoder_layers": "six"}), "decoder_layers must be a positive whole number, got 'six'"),
    (ms.IdentityBlocks(depths={"decoder_layers": 0}), "decoder_layers must be a positive whole number, got 0"),
    (ms.LEMON(num_hidden_layers=4, blocks="wings"), "has no blocks 'wings'; it has decoder_layers, encoder_layers"),
    (ms.Stacking(layers="0,1", blocks="wings"), "has no blocks 'wings'"),
    (ms.IdentityBlocks(num_hidden_layers=True), "num_hidden_layers must be a positive whole number, got True"),
])  # fmt: skip
def test_scopes_that_make_no_sense(method, message):
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(pico.build("t5"), method)


def test_new_layers_of_growths_in_turn():
    small = pico.build("llama")  # two layers
    methods = [ms.IdentityBlocks(num_hidden_layers=3), ms.Stacking(depth=2)]
    growth = ms.Growth.of(small, methods)
    silent = growth.plans[0].layers["layers"]
    assert [layer.silent for layer in silent] == [False, False, True]
    assert growth.new_layers == {"layers": [2, 3, 4, 5]}  # the old two, then the silent one, then copies of all three
    assert ms.Growth.of(small, ms.HyperCloning(width=2)).new_layers == {}
    middle = ms.Growth.of(
        pico.build("t5_gated"), ms.MIDAS(layers=1)
    )  # layers 0 1 become 0 0 1, and 0 1 2 become 0 1 1 2
    assert middle.new_layers == {"encoder_layers": [1], "decoder_layers": [2]}


@pytest.mark.parametrize("old, new", [(8, 10), (10, 12), (2, 5), (5, 8)])
def test_new_layers_lie_evenly(old, new):
    from meristem.growth.plans.depth import spread

    ends, place = [], 0
    for _, times in spread(old, new):
        place += times
        ends += [place] * (times - 1)
    halves = sum(end <= new / 2 for end in ends), sum(end > new / 2 for end in ends)
    assert abs(halves[0] - halves[1]) <= 1
    assert len(ends) == new - old


def test_the_command_line_grows_scopes_apart_and_says_what_is_new(tmp_path):
    pico.build("bart").save_pretrained(tmp_path / "small")
    done = meristem("grow", tmp_path / "small", tmp_path / "big", "--method", "lemon", "--size", "decoder_layers=4", "--size",
                    "encoder_ffn=60")  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "big" / "config.json").read_text())
    assert (config["encoder_layers"], config["decoder_layers"], config["encoder_ffn_dim"]) == (2, 4, 60)
    record = json.loads((tmp_path / "big" / "meristem.json").read_text())
    places = record["new_layers"]["decoder_layers"]
    assert len(places) == 2
    told = ", ".join(map(str, places))
    assert f"new decoder layers, counted from 0: {told}" in done.stdout
    assert f"| new decoder layers, counted from 0 | {told} |" in (tmp_path / "big" / "README.md").read_text()
    done = meristem("grow", tmp_path / "small", tmp_path / "deep", "--method", "identity_blocks", "--num-hidden-layers", 3, "--blocks",
                    "encoder")  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "deep" / "config.json").read_text())
    assert (config["encoder_layers"], config["decoder_layers"]) == (3, 2)
