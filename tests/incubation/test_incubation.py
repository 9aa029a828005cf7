"""Deep Incubation: hybrids, what is trained in them and what is not, and the network assembled from them."""

import numpy as np
import pico
import pytest
import torch
from torch.utils import flop_counter
from transformers import ConvNextConfig, ConvNextForImageClassification, ResNetConfig, ResNetForImageClassification

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
    assert ms.divide(8, 3).depths == ms.divide(np.int64(8), np.int64(3)).depths == (3, 3, 2)
    assert ms.divide(6, 2, costs=[5, 1, 1, 1, 1, 1]).depths == (1, 5)
    division = ms.divide(8, 3, meta_layers=2)
    assert (division.meta_depth, division.num_hidden_layers) == (6, 8)
    assert [division.start(module) for module in range(3)] == [0, 3, 6]
    assert list(division.in_hybrid(1)) == [2, 3, 4]
    wrong_ones = {(4, 5): "2 to 4 modules", (4, 1): "2 to 4 modules", (6.0, 2): "whole numbers, got 6.0 and 2"}
    for wrong, words in wrong_ones.items():
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


def test_divisions_of_stages():
    stages = ms.divide([3, 4, 6, 3], 4)
    assert (stages.depths, stages.stages, stages.meta_depths) == ((3, 4, 6, 3), (1, 1, 1, 1), (1, 1, 1, 1))
    finer = ms.divide([3, 4, 6, 3], 6)
    assert (finer.depths, finer.stages, finer.meta_depths) == ((3, 2, 2, 3, 3, 3), (1, 2, 2, 1), (1, 2, 2, 1))
    assert [finer.start(module) for module in range(6)] == [0, 0, 2, 0, 3, 0]
    assert [list(finer.in_hybrid(module)) for module in (2, 3, 4)] == [[1, 2], [0, 1, 2], [1, 2, 3]]
    assert finer.origins(4) == ([0], [0, 1], [0, 1, 1, 1], [0])
    by_cost = ms.divide([2, 2, 2], 4, costs=[9, 9, 1, 1, 1, 1])
    assert (by_cost.depths, by_cost.stages) == ((1, 1, 2, 2), (2, 1, 1))
    with pytest.raises(ms.MeristemError, match="8 blocks in 3 stages make 3 to 8 modules, got 2"):
        ms.divide([2, 4, 2], 2)


def resnet(depths, seed=0):
    torch.manual_seed(seed)
    config = ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 12, 16], depths=depths, layer_type="basic", num_labels=5,
        image_size=32,
    )  # fmt: skip
    return ResNetForImageClassification(config)


def convnext(depths, seed=0):
    torch.manual_seed(seed)
    return ConvNextForImageClassification(
        ConvNextConfig(num_stages=3, hidden_sizes=[8, 12, 16], depths=depths, num_labels=5, image_size=32)
    )


@pytest.mark.parametrize("build", [resnet, convnext])
def test_networks_of_stages(build):
    meta, division = build([1, 1, 1]), ms.divide([2, 4, 2], 3)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        meta.train()(pixel_values=images)  # running statistics that are not those of a new network
    incubations, trained = [], []
    for module in range(3):
        incubation = ms.incubate(meta, division, module)
        hybrid = incubation.model
        before = {name: tensor.clone() for name, tensor in hybrid.state_dict().items()}
        optimizer = torch.optim.AdamW([p for p in hybrid.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
        hybrid.train()(pixel_values=images).logits.square().mean().backward()
        optimizer.step()
        changed = {name for name, tensor in hybrid.state_dict().items() if not torch.equal(tensor, before[name])}
        assert all(f".stages.{module}." in name or module in (0, 2) for name in changed)
        assert all(p.grad is None for p in hybrid.parameters() if not p.requires_grad)
        trained.append({n for n, p in hybrid.named_parameters() if p.requires_grad and ".stages." not in n})
        incubations.append(incubation)
    assert [bool(names) for names in trained] == [True, False, True]
    large = ms.assemble(incubations)
    assert large.config.depths == [2, 4, 2]
    assert large.training
    for module, incubation in enumerate(incubations):
        state = incubation.model.state_dict()
        theirs = {n: t for n, t in large.state_dict().items() if f".stages.{module}." in n}
        assert theirs
        assert all(torch.equal(state[n], t) for n, t in theirs.items())
    assert (
        type(large.get_submodule(next(n for n, m in large.named_modules() if "norm" in n))).train
        is torch.nn.Module.train
    )


def test_blocks_are_balanced_by_what_they_cost():
    uniform = ms.block_costs(meta_of("llama", 4))
    assert len(set(uniform)) == 1
    assert uniform[0] > 0
    costs = ms.block_costs(resnet([2, 3, 2]))
    assert len(costs) == 7
    assert costs[0] > costs[3] > costs[6]  # later stages have more channels, and far fewer pixels
    even, balanced = ms.divide([2, 3, 2], 4), ms.divide([2, 3, 2], 4, costs=costs)
    assert even.stages == (1, 2, 1)
    assert balanced.stages == (2, 1, 1)


def test_an_encoder_decoder():
    meta, division = pico.build("t5", num_layers=2, num_decoder_layers=1), ms.divide([4, 3], 3)
    assert (division.depths, division.stages) == ((2, 2, 3), (2, 1))
    inputs = example_inputs(meta)
    same = Division((1, 1, 1), stages=(2, 1))
    clones = [ms.incubate(meta, same, module, start="clone") for module in range(3)]
    assert all(torch.equal(run(clone.model, inputs), run(meta, inputs)) for clone in clones)
    assert torch.equal(run(ms.assemble(clones), inputs), run(meta, inputs))
    large = ms.assemble([ms.incubate(meta, division, module) for module in range(3)])
    assert (large.config.num_layers, large.config.num_decoder_layers) == (4, 3)


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.fc = torch.nn.LayerNorm(width), torch.nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc(self.norm(x))


class Timmish(torch.nn.Module):
    """The names and the shape of timm's VisionTransformer."""

    def __init__(self, width, depth):
        super().__init__()
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, width))
        self.patch_embed = torch.nn.Conv2d(3, width, 8, 8)
        self.blocks = torch.nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = torch.nn.LayerNorm(width), torch.nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1))
        return self.head(self.norm(x[:, 0]))


def test_a_network_outside_transformers():
    meta, division, inputs = Timmish(16, 2), ms.divide(6, 2), {"x": torch.randn(2, 3, 16, 16)}
    anatomy = ms.Anatomy.infer(lambda width, depth: Timmish(width, depth), {"width": 16}, {"depth": 2})
    parts = [ms.incubate(meta, division, module, anatomy=anatomy, inputs=inputs) for module in range(2)]
    trained = [{n.split(".")[0] for n, p in part.model.named_parameters() if p.requires_grad} for part in parts]
    assert trained == [{"cls_token", "patch_embed", "blocks"}, {"blocks", "norm", "head"}]
    large = ms.assemble(parts)
    assert len(large.blocks) == 6
    assert torch.equal(large.blocks[4].fc.weight, parts[1].model.blocks[2].fc.weight)
    same = [ms.incubate(meta, Division((1, 1)), m, start="clone", anatomy=anatomy, inputs=inputs) for m in range(2)]
    assert torch.equal(ms.assemble(same)(**inputs), meta(**inputs))


def test_timms_vision_transformer():
    timm = pytest.importorskip("timm", exc_type=ImportError)  # the extra `vision`; the class above stands in without it

    def build(embed_dim, depth):
        sizes = {"img_size": 32, "patch_size": 8, "num_heads": 2, "num_classes": 5}
        return timm.create_model("vit_tiny_patch16_224", embed_dim=embed_dim, depth=depth, **sizes).eval()

    meta, inputs = build(32, 3), {"x": torch.randn(2, 3, 32, 32)}
    anatomy = ms.Anatomy.infer(build, {"embed_dim": 32}, {"depth": 3})
    same = [ms.incubate(meta, Division((1, 1, 1)), m, start="clone", anatomy=anatomy, inputs=inputs) for m in range(3)]
    assert torch.equal(ms.assemble(same).eval()(**inputs), meta(**inputs))
    parts = [ms.incubate(meta, ms.divide(7, 3), m, anatomy=anatomy, inputs=inputs) for m in range(3)]
    assert len(ms.assemble(parts).blocks) == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clone_of_the_metas_own_size_is_the_meta(family):
    meta = meta_of(family)
    division = Division((1, 1, 1))
    inputs = example_inputs(meta)
    incubations = [ms.incubate(meta, division, module, start="clone") for module in range(3)]
    for incubation in incubations:
        assert torch.equal(run(incubation.model, inputs), run(meta, inputs))
    assert torch.equal(run(ms.assemble(incubations), inputs), run(meta, inputs))


def test_every_module_draws_its_own_numbers_from_one_seed():
    meta, division = meta_of("llama"), ms.divide(6, 3)
    assembled = ms.assemble([ms.incubate(meta, division, module) for module in range(3)])
    drawn = [layer.self_attn.q_proj.weight for layer in assembled.model.layers]
    alike = [(a, b) for a in range(6) for b in range(a) if torch.equal(drawn[a], drawn[b])]
    assert alike == []


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_module_changes_and_assembly_takes_it_over(family):
    meta, division = meta_of(family), ms.divide(7, 3)
    inputs, incubations = example_inputs(meta), []
    for module in range(3):
        incubation = ms.incubate(meta, division, module)
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
        ours = large.get_submodule(prefix)[division.start(module)].state_dict()
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
    with pytest.raises(ms.MeristemError, match="need 3"):
        ms.incubate(meta_of("llama", 2), division, 0)
    with pytest.raises(ms.MeristemError, match="from 0 to 2"):
        ms.incubate(meta, division, 3)
    with pytest.raises(ms.MeristemError, match="random or clone"):
        ms.incubate(meta, division, 0, start="zero")
    with pytest.raises(ms.MeristemError, match="2 lists of blocks"):
        ms.incubate(pico.build("t5"), division, 0)
    with pytest.raises(
        ms.MeristemError, match=r"has \[1, 2, 1\] blocks; 3 modules with meta_layers=1 need \[1, 1, 1\]"
    ):
        ms.incubate(resnet([1, 2, 1]), ms.divide([2, 4, 2], 3), 0)
    parts = [ms.incubate(meta, division, module) for module in range(3)]
    with pytest.raises(ms.MeristemError, match=r"0 to 2 once, got \[0, 1\]"):
        ms.assemble(parts[:2])
    with pytest.raises(ms.MeristemError, match="different meta networks"):
        ms.assemble([*parts[:2], ms.incubate(pico.build("llama", 1, num_hidden_layers=3), division, 2)])
    with pytest.raises(ms.MeristemError, match="different divisions"):
        ms.assemble([*parts[:2], ms.incubate(meta, ms.divide(9, 3), 2)])


def test_every_module_begins_with_numbers_of_its_own():
    """All blocks of the assembled network differ, and so do those of another seed."""
    torch.manual_seed(0)
    meta = pico.build("llama", num_hidden_layers=4)
    division = ms.divide(12, 4)
    blocks = []
    for seed in (0, 1):
        large = ms.assemble([ms.incubate(meta, division, module, seed=seed) for module in range(4)])
        blocks += [layer.mlp.up_proj.weight for layer in large.model.layers]
    assert len({tuple(weight.flatten().tolist()) for weight in blocks}) == 24
