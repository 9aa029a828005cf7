"""Pruning by data: what nobody hears goes without a trace, readers are fitted, each layer chooses for itself, blocks by the loss."""

from __future__ import annotations

import copy
import itertools
import lzma
from pathlib import Path

import own_architectures as own
import pytest
import torch
from support.tiny import randomise
from torch import nn

import meristem as ms
from meristem.growth.pruning.batch_statistics import new_statistics

SHARED = Path(__file__).parents[3] / "shared/data"
RANDOM = torch.Generator().manual_seed(0)
IMAGES = {"x": torch.randn(16, 3, 16, 16, generator=RANDOM)}
TEXT = {"tokens": torch.randint(11, (8, 12), generator=RANDOM)}


def chain(width: int, depth: int = 1) -> nn.Module:
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), *hidden, nn.Linear(width, 3))


@pytest.mark.parametrize("readers", ["in_turn", "at_once", "kept"])
def test_units_that_are_never_active_go_without_a_trace(readers):
    """Other ones in each layer, and with large weights, so that no look at weights would choose them."""
    torch.manual_seed(0)
    net, data = chain(12), {"input": torch.randn(64, 8)}
    dead = {0: [1, 4, 5, 9], 2: [0, 2, 10, 11]}
    for layer, units in dead.items():
        net[layer].weight.data[units] *= 5
        net[layer].bias.data.abs_()
        net[layer].bias.data += 0.5  # all others are active
        net[layer].bias.data[units] = -1e3
    anatomy = ms.Anatomy.infer(chain, {"width": 12})
    method = ms.Prune(sizes={"width": 8}, readers=readers, ridge=1e-9)
    small = ms.shrink(net, method, anatomy=anatomy, inputs=data)
    alive = {layer: [i for i in range(12) if i not in units] for layer, units in dead.items()}
    torch.testing.assert_close(small[0].weight, net[0].weight[alive[0]])
    torch.testing.assert_close(small[2].bias, net[2].bias[alive[2]])
    torch.testing.assert_close(small(**data), net(**data), rtol=1e-4, atol=1e-4)
    by_weights = ms.WeightSelection(sizes={"width": 8}, selection="magnitude")
    other = ms.shrink(net, by_weights, anatomy=anatomy, inputs=data)
    assert (other(**data) - net(**data)).abs().max() > 0.05


def test_a_unit_that_is_the_sum_of_two_others_goes_and_its_reader_is_fitted():
    """x2 = x0 + x1 behind the activation, and nothing dearer: its weight goes to the other two."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    net[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    net[2].weight.data = torch.tensor([[2.0, -3.0, 0.25]])

    def build(width):
        return nn.Sequential(nn.Linear(2, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False))

    data = {"input": torch.rand(64, 2, generator=RANDOM)}
    fitted = ms.Prune(sizes={"width": 2}, ridge=0.0)
    small = ms.shrink(net, fitted, anatomy=ms.Anatomy.infer(build, {"width": 3}), inputs=data)
    torch.testing.assert_close(small[0].weight, torch.eye(2))
    torch.testing.assert_close(small[2].weight, torch.tensor([[2.25, -2.75]]), rtol=1e-4, atol=1e-4)


def test_importance_by_outputs_and_by_activations():
    """Unit 0 is loud and hardly read, unit 1 quiet and read with a large weight."""

    def build(width):
        return nn.Sequential(nn.Linear(2, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False))

    net = build(2)
    net[0].weight.data, net[2].weight.data = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.1, 2.0]])
    data, anatomy = {"input": torch.rand(64, 2, generator=RANDOM)}, ms.Anatomy.infer(build, {"width": 2})
    for importance, kept in (("outputs", [[0.0, 1.0]]), ("activations", [[3.0, 0.0]])):
        method = ms.Prune(sizes={"width": 1}, importance=importance)
        small = ms.shrink(net, method, anatomy=anatomy, inputs=data)
        assert small[0].weight.tolist() == kept, importance


@pytest.mark.parametrize("silent", [[1], [0, 3]])
def test_blocks_that_change_nothing_go(silent):
    torch.manual_seed(0)
    net = own.EinsumTransformer(16, 2, 8, 24, n_layers=4).eval()
    randomise(net)
    for layer in silent:
        block = net.blocks[layer]
        for tensor in (block.W_out, block.b_out, block.attn.W_O, block.attn.b_O):
            tensor.data.zero_()
    anatomy = ms.Anatomy.infer(own.EinsumTransformer, {"d_model": 16, "n_heads": 2, "d_mlp": 24}, {"n_layers": 4})
    small = ms.shrink(net, ms.Prune(depths={"n_layers": 4 - len(silent)}), anatomy=anatomy, inputs=TEXT)
    assert len(small.blocks) == 4 - len(silent)
    torch.testing.assert_close(small(**TEXT), net(**TEXT), rtol=1e-4, atol=1e-4)


def test_a_block_that_changes_the_shape_stays():
    net = own.CifarResNet(4, 3).eval()
    randomise(net)
    net.layer3[0].bn2.weight.data.zero_()
    anatomy = ms.Anatomy.infer(own.CifarResNet, {"width": 4}, {"num_blocks": 3})
    small = ms.shrink(net, ms.Prune(depths={"num_blocks": 1}), anatomy=anatomy, inputs=IMAGES)
    torch.testing.assert_close(small.layer3[0].conv1.weight, net.layer3[0].conv1.weight)
    assert small(**IMAGES).shape == (16, 10)


def test_batch_norms_get_the_statistics_of_the_small_network():
    torch.manual_seed(0)
    net = own.CifarResNet(8, 2).eval()
    randomise(net)
    anatomy = ms.Anatomy.infer(own.CifarResNet, {"width": 8}, {"num_blocks": 2})
    small = ms.shrink(net, ms.Prune(sizes={"width": 6}), anatomy=anatomy, inputs=IMAGES)
    again = copy.deepcopy(small)
    new_statistics(again, [IMAGES])
    for name, tensor in ((n, t) for n, t in small.state_dict().items() if t.is_floating_point()):
        torch.testing.assert_close(again.state_dict()[name], tensor, check_dtype=False)
    assert not torch.equal(small.bn1.running_mean, net.bn1.running_mean[:6])


@pytest.mark.parametrize("case, sizes", [
    (lambda: own.CifarResNet(8, 2), {"width": 4}),
    (lambda: own.EinsumTransformer(16, 2, 8, 24), {"d_model": 12, "n_heads": 1, "d_mlp": 12}),
    (lambda: own.UNet(), {"ch": 4}),
    (lambda: own.RNNModel(), {"ninp": 6, "nhid": 8}),
    (lambda: own.SENet(), {"planes": 4}),
    (lambda: own.MoETransformer(), {"num_heads": 1, "inner": 12}),
])  # fmt: skip
def test_the_six_networks_of_the_guide_shrink(case, sizes):
    torch.manual_seed(0)
    net = case().eval()
    kinds = {"width": 8, "d_model": 16, "n_heads": 2, "d_mlp": 24, "ch": 8, "ninp": 12, "nhid": 16, "planes": 8,
             "num_heads": 2, "inner": 24}  # fmt: skip
    anatomy = ms.Anatomy.infer(_builder(net), {axis: kinds[axis] for axis in sizes})
    inputs = {"UNet": {"x": IMAGES["x"][:, :1], "t": torch.arange(16)}, "MoETransformer": {"idx": TEXT["tokens"]}}
    inputs = inputs.get(type(net).__name__, TEXT if isinstance(net, own.RNNModel | own.EinsumTransformer) else IMAGES)
    small = ms.shrink(net, ms.Prune(sizes=sizes), anatomy=anatomy, inputs=inputs)
    assert small(**inputs).isfinite().all()
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())


def _builder(net: nn.Module):
    return {own.CifarResNet: lambda width: own.CifarResNet(width, 2),
            own.EinsumTransformer: lambda d_model, n_heads, d_mlp: own.EinsumTransformer(d_model, n_heads, 8, d_mlp)}.get(
        type(net), type(net))  # fmt: skip


def test_without_data_or_targets_or_for_larger_sizes_it_says_what_would_work():
    net, anatomy = chain(12), ms.Anatomy.infer(chain, {"width": 12})
    data = {"input": torch.randn(4, 8)}
    for method, inputs, message in (
        (ms.Prune(sizes={"width": 6}), None, r"give a few hundred examples as inputs=\{\.\.\.\} of ms\.shrink"),
        (ms.Prune(), data, "nothing to shrink"),
        (ms.Prune(sizes={"width": 24}), data, "asked for width of 24, the network has 12"),
    ):
        with pytest.raises(ms.MeristemError, match=message):
            ms.shrink(net, method, anatomy=anatomy, inputs=inputs)
    with pytest.raises(ms.MeristemError, match="importance is one of 'outputs', 'activations'"):
        ms.Prune(importance="loud")
    with pytest.raises(ms.MeristemError, match="prune"):
        ms.grow(chain(12), ms.Prune(sizes={"width": 24}), anatomy=anatomy, inputs=data)


def test_what_is_recorded_holds_no_data():
    net, batches = chain(12), [{"input": torch.randn(8, 8)} for _ in range(3)]
    method = ms.Prune(sizes={"width": 6}, batches=batches)
    growth = ms.Growth.of(net, method, anatomy=ms.Anatomy.infer(chain, {"width": 12}), inputs=batches[0])
    assert "batches" not in growth.methods[0]
    assert growth.methods[0]["sizes"] == {"width": 6}
    assert growth.anatomy.sizes == {"width": 6}


# --- trained networks, measured on examples that nothing was chosen on


def _stories():
    """The trained llama of ../shared/data, and stories cut to 256 tokens."""
    if not SHARED.exists():
        pytest.skip("no ../shared/data here")
    transformers = pytest.importorskip("transformers")
    directory = SHARED / "checkpoints/stories260K-llama"
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with lzma.open(SHARED / "text/tinystories_sample_2MiB.txt.xz", "rt") as file:
        text = file.read(60_000)
    found = [[1, *tokenizer(s.strip(), add_special_tokens=False).input_ids] for s in text.split("<|endoftext|>")]
    ids = torch.tensor([token for story in found for token in story])
    return model, ids[: len(ids) // 256 * 256].view(-1, 256)


def _digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


def _trained(net: nn.Module, images, labels, steps: int) -> nn.Module:
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=5e-3)
    for _ in range(steps):
        batch = torch.randint(1400, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
    return net.eval()


def _accuracy(net: nn.Module, images, labels) -> float:
    with torch.no_grad():
        return float((net.eval()(images[1400:]).argmax(1) == labels[1400:]).float().mean())


def test_half_of_a_trained_perceptron_does_what_the_whole_did():
    """Measured: 96 % of the whole, 96 % of the half; by weights 53 to 69 %."""
    images, labels = _digits()

    def build(width: int) -> nn.Module:
        sizes = [64, width, width]
        hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))

    torch.manual_seed(0)
    net = _trained(build(64), images, labels, 400)
    anatomy, data = ms.Anatomy.infer(build, {"width": 64}), {"input": images[:512]}
    before = copy.deepcopy(net.state_dict())
    pruned = ms.shrink(net, ms.Prune(sizes={"width": 32}), anatomy=anatomy, inputs=data)
    selection = ms.WeightSelection(sizes={"width": 32}, selection="magnitude")
    by_magnitude = ms.shrink(net, selection, anatomy=anatomy, inputs=data)
    whole, half, other = (_accuracy(model, images, labels) for model in (net, pruned, by_magnitude))
    assert half > whole - 0.02
    assert half > other + 0.1
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_a_trained_language_model_keeps_more_by_data_than_by_weights():
    """stories260K, nll on held-out stories, whole 1.32; half of the feed-forward units: 2.9 by data, 4.1 by magnitude."""
    model, ids = _stories()
    batches = [{"input_ids": ids[8:16]}, {"input_ids": ids[16:24]}]
    cuts = {"intermediate_size": 86}

    def nll(net: nn.Module) -> float:
        with torch.no_grad():
            return float(net(input_ids=ids[:8], labels=ids[:8]).loss)

    pruned = ms.shrink(model, ms.Prune(**cuts, batches=batches))
    kept = ms.shrink(model, ms.Prune(**cuts, batches=batches, readers="kept"))
    by_magnitude = ms.shrink(model, ms.WeightSelection(**cuts, selection="magnitude"))
    assert nll(pruned) < nll(kept) - 0.2 < nll(by_magnitude) - 0.2
    assert pruned.config.intermediate_size == 86
    assert pruned.config.tie_word_embeddings
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
    labelled = [{**batch, "labels": batch["input_ids"]} for batch in batches]
    shallow = ms.shrink(model, ms.Prune(num_hidden_layers=3, batches=labelled))
    first = ms.shrink(model, ms.WeightSelection(num_hidden_layers=3))
    assert nll(shallow) < nll(first)
