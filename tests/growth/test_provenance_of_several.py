"""What is old, copied or fresh in a fusion, and in a network that was grown more than once."""

from __future__ import annotations

import copy
import json

import pico
import pytest
import torch
from command_line import meristem
from test_optimizer import batches, step
from test_upcycle import UNITS

import meristem as ms
from meristem.growth.fuse import fuse_with_certificate

DOWN, UP = "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"


def written(provenance):
    """After it was written down and read again; what it counts is what its masks hold."""
    there = ms.Provenance.of_dict(json.loads(json.dumps(provenance.as_dict())))
    counted = dict.fromkeys(there.counts(), 0)
    for name in there.steps[-1]:
        for kind, mask in there.masks(name).items():
            counted[kind] += int(mask.sum())
    assert counted == there.counts() == provenance.counts()
    return there


def blocks(rows, columns):
    """Bool, (sum of rows, sum of columns): which entries lie in blocks of the diagonal."""
    return torch.block_diag(*(torch.ones(r, c) for r, c in zip(rows, columns, strict=True))).bool()


def test_each_parents_block_is_old_and_what_lies_between_is_fresh():
    """Parents of different widths: the up projection holds (44, 32) of the first, (60, 24) of the second."""
    other = pico.build(
        "llama", seed=1, hidden_size=24, intermediate_size=60, num_attention_heads=3, num_key_value_heads=3
    )
    first = pico.build("llama", num_key_value_heads=4)
    fusion = fuse_with_certificate([first, other])
    found = written(ms.provenance(fusion))
    found.check(fusion.model)
    own = blocks((44, 60), (32, 24))
    assert torch.equal(found.mask(UP, "old"), own)
    assert torch.equal(found.mask(UP, "fresh"), ~own)
    assert torch.equal(found.mask(DOWN, "old"), own.T)
    assert torch.equal(fusion.model.get_parameter(UP) != 0, own)
    assert found.mask("model.embed_tokens.weight", "old").all()  # columns beside each other
    assert found.mask("model.norm.weight", "old").all()
    total = sum(p.numel() for m in (first, other) for p in m.parameters())
    assert found.counts()["old"] == total
    assert found.counts()["copied"] == 0


def test_what_parents_share_is_a_mixture_and_a_parent_once_more_is_a_copy():
    """Qwen3's norms of single heads have one size, so two parents share theirs."""
    norm = "model.layers.0.self_attn.q_norm.weight"
    first, second = pico.build("qwen3"), pico.build("qwen3", seed=1)
    found = written(fuse_with_certificate([first, second]).provenance)
    assert found.mask(norm, "copied").all()
    again = written(fuse_with_certificate([first, copy.deepcopy(first)]).provenance)
    assert again.mask(norm, "old").all()
    labels = again.labels(UP)
    assert (labels[:44, :32] == 0).all()
    assert (labels[44:, 32:] == 1).all()
    assert (labels[:44, 32:] == 2).all()
    assert (labels[44:, :32] == 2).all()


@pytest.mark.parametrize("family, options, expert", [
    ("llama", UNITS, "model.layers.0.mlp.experts.gate_up_proj"), ("t5", {}, "encoder.block.0.layer.1.mlp.experts.expert_1.wi.weight"),
])  # fmt: skip
def test_parents_as_experts(family, options, expert):
    """Every expert is a parent's own, what is averaged is a mixture, the router is new."""
    parents = [pico.build(family, seed=seed, **options) for seed in range(2)]
    method = ms.DeepFusion(experts=True, experts_per_token=1)
    found = written(fuse_with_certificate(parents, method).provenance)
    router = [name for name in found.steps[-1] if ".gate.weight" in name or "classifier" in name]
    assert found.mask(expert, "old").all()
    assert router
    assert all(found.mask(name, "fresh").all() for name in router)
    rest = [name for name in found.steps[-1] if "experts" not in name and name not in router]
    assert all(found.mask(name, "copied").all() for name in rest)
    once = written(fuse_with_certificate([parents[0]] * 2, method).provenance)
    assert all(once.mask(name, "old").all() for name in rest)
    labels = once.labels(expert)
    if labels.dim() == 3:
        assert (labels[0] == 0).all()
        assert (labels[1] == 1).all()
    else:
        assert (labels == 1).all()


def test_a_mean_of_aligned_networks_is_a_mixture():
    parents = [torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)) for _ in range(2)]
    fusion = fuse_with_certificate(parents, ms.Rebasin(), inputs={"input": torch.randn(16, 4)})
    found = written(fusion.provenance)
    found.check(fusion.model)
    assert found.counts() == {"old": 0, "copied": 4 * 6 + 6 + 6 * 2 + 2, "fresh": 0}


def test_only_what_lies_between_the_parents_trains():
    """What a fusion adds, the cross blocks, learns; both parents stay, bit by bit."""
    fusion = fuse_with_certificate([pico.build("llama", seed=seed) for seed in range(2)])
    before = copy.deepcopy(fusion.model.state_dict())
    done = ms.freeze_old(fusion.model, fusion, "fresh")
    assert done.moving == fusion.provenance.counts()["fresh"] > 0
    optimizer = torch.optim.AdamW([p for p in fusion.model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for tokens in batches(3, 3):
        step(fusion.model.train(), optimizer, tokens)
    for name, parameter in fusion.model.named_parameters():
        held = fusion.provenance.mask(name, "old")
        assert torch.equal(parameter[held], before[name][held]), name
    assert (fusion.model.get_parameter(UP) != before[UP])[fusion.provenance.mask(UP, "fresh")].all()


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Grown in width on the command line, and what came of it in depth and width once more."""
    folder = tmp_path_factory.mktemp("twice")
    pico.build("llama").save_pretrained(folder / "a")
    assert (
        meristem("grow", folder / "a", folder / "b", "--method", "zero_padding", "--intermediate-size", "60").returncode
        == 0
    )
    options = ("--intermediate-size", "120", "--num-hidden-layers", "4")
    assert (
        meristem("grow", folder / "b", folder / "c", "--method", "hypercloning,identity_blocks", *options).returncode
        == 0
    )
    return folder


def test_what_was_fresh_is_old_after_the_next_growth_and_the_record_says_both(twice):
    found = ms.provenance(twice / "c")
    assert found.growths == 2
    assert (found.labels(UP)[:60] == 0).all()  # 44 old ones and 16 that the first growth added
    assert (found.labels(UP)[60:] == 1).all()
    assert found.before is not None
    assert (found.before.labels(UP)[:44] == 0).all()
    assert (found.before.labels(UP)[44:] == 2).all()
    whole = found.since_first
    assert whole.labels(UP)[:, 0].tolist() == [0] * 44 + [2] * 16 + [1] * 44 + [2] * 16
    assert whole.mask("model.layers.1.mlp.down_proj.weight", "fresh").all()  # a block of the second growth
    assert whole.growths == 1
    said = meristem("inspect", twice / "c").stdout.replace("\n", " ")
    for kind in ("old", "copied", "fresh"):
        assert f"({found.counts()[kind]:,})" in said
    old = found.before.counts()["old"]
    assert f"the growth before it: old {old / sum(found.before.counts().values()):.1%} ({old:,})" in said


@pytest.mark.parametrize("since_first", [False, True])
def test_freezing_after_two_growths(twice, since_first):
    """By default what the last growth has found stays; held against the first network, what either has added moves."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(twice / "c", dtype=torch.float32).train()
    found = ms.provenance(model)
    found = found.since_first if since_first else found
    before = copy.deepcopy(model.state_dict())
    done = ms.freeze_old(model, found)
    counts = found.counts()
    assert done.moving == counts["copied"] + counts["fresh"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for tokens in batches(3, 3):
        step(model, optimizer, tokens)
    for name, parameter in model.named_parameters():
        old = found.mask(name, "old")
        assert torch.equal(parameter[old], before[name][old]), name
    moved = (model.get_parameter(DOWN) != before[DOWN])[0]
    assert moved[60:].all()
    assert not moved[:44].any()
    assert bool(moved[44:60].all()) == since_first  # what the first growth has added


def test_a_growths_growth_says_the_same():
    first = ms.Growth.of(pico.build("llama"), ms.ZeroPadding(intermediate_size=60))
    second = ms.Growth.of(first, ms.HyperCloning(intermediate_size=120))
    found = written(second.provenance)
    assert found.growths == 2
    assert found.before is not None
    assert found.before.counts() == first.provenance.counts()
    assert (found.labels(UP)[:60] == 0).all()
    assert (found.since_first.labels(UP)[44:60] == 2).all()


def test_a_fusion_that_grows_knows_its_parents():
    fusion = fuse_with_certificate([pico.build("llama", seed=seed) for seed in range(2)])
    growth = ms.Growth.of(fusion.model, ms.IdentityBlocks(depth=2))
    whole = growth.provenance.after(fusion.provenance).since_first
    assert torch.equal(whole.mask("model.layers.2.mlp.up_proj.weight", "old"), blocks((44, 44), (32, 32)))


def test_tied_heads_are_known_by_both_names_after_two_growths(tmp_path):
    first = ms.Growth.of(pico.build("llama", tie_word_embeddings=True), ms.ZeroPadding(hidden_size=48))
    second = ms.Growth.of(first, ms.HyperCloning(width=2))
    whole = second.provenance.since_first
    assert torch.equal(whole.labels("lm_head.weight"), whole.labels("model.embed_tokens.weight"))
    assert (whole.labels("lm_head.weight")[:, :32] == 0).all()
    assert (whole.labels("lm_head.weight")[:, 32:48] == 2).all()


def test_a_record_of_another_network_does_not_stop_a_growth(tmp_path):
    """A stale or broken record beside the source is left out, with a warning that says so."""
    small = pico.build("llama")
    small.save_pretrained(tmp_path / "a")
    other = ms.Growth.of(pico.build("llama"), ms.ZeroPadding(intermediate_size=60)).provenance
    (tmp_path / "a" / "meristem.json").write_text(json.dumps({"provenance": other.as_dict()}))
    done = meristem("grow", tmp_path / "a", tmp_path / "b", "--width", "2")
    assert done.returncode == 0
    assert "not carried along: this is the provenance of another network" in done.stderr.replace("\n", " ")
    assert ms.provenance(tmp_path / "b").before is None
    (tmp_path / "a" / "meristem.json").write_text('{"provenance": {"steps": [{"units": 3}]}}')
    assert meristem("grow", tmp_path / "a", tmp_path / "c", "--width", "2").returncode == 0


def test_the_command_line_records_a_fusion(tmp_path):
    for seed in range(2):
        pico.build("llama", seed=seed).save_pretrained(tmp_path / str(seed))
    assert meristem("fuse", tmp_path / "0", tmp_path / "1", tmp_path / "out").returncode == 0
    found = ms.provenance(tmp_path / "out")
    assert torch.equal(found.mask(UP, "old"), blocks((44, 44), (32, 32)))
    assert "provenance: old" in meristem("inspect", tmp_path / "out").stdout
