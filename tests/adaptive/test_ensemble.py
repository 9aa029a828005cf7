"""Ensembles of any modules: mixtures are optimal, strategies mean what they say, searches replay and go on."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import meristem as ms
from meristem.adaptive import EnsembleSearch, Subnetwork
from meristem.adaptive.adanet import Ensemble
from meristem.adaptive.adanet.losses import Softmax, Squared
from meristem.adaptive.adanet.mixtures import Said, fit_mixture


def data(rows=256, classes=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2, generator=generator)
    y = (x.square().sum(1) > torch.tensor([[0.7], [2.0]])).sum(0) % classes
    return [(x[i : i + 64], y[i : i + 64]) for i in range(0, rows, 64)]


class Deep(nn.Module):
    """A perceptron that also gives its last layer."""

    def __init__(self, depth, outputs=3):
        super().__init__()
        layers = [nn.Linear(2, 12), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(12, 12), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(12, outputs)

    def forward(self, x):
        last = self.body(x)
        return last, self.head(last)


def propose(number, ensemble):
    return [Subnetwork(f"depth {d}", Deep(d), complexity=d**0.5, learning_rate=0.01) for d in (1, 2)]


def accuracy(ensemble):
    with torch.no_grad():
        return sum(int((ensemble(x).argmax(1) == y).sum()) for x, y in data()) / 256


def said(members, outputs=3, rows=200):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [Said(draw(rows, 5), draw(rows, outputs)) for _ in range(members)]


@pytest.mark.parametrize("kind", ["scalar", "vector", "matrix"])
@pytest.mark.parametrize("loss", [Softmax(), Squared()])
def test_mixtures_are_optimal(kind, loss):
    """No small move of any weight lowers the objective, which counts the penalty once."""
    members, prices = said(3), [0.001, 0.02, 0.3]
    labels = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(2))
    targets = nn.functional.one_hot(labels, 3).double()

    def objective(weights):
        parts = [m.last_layer @ w if kind == "matrix" else m.logits * w for m, w in zip(members, weights, strict=True)]
        paid = sum(price * w.abs().sum() for price, w in zip(prices, weights, strict=True))
        return float(loss.value(sum(parts), targets).mean() + paid)

    weights, value = fit_mixture(kind, members, prices, targets, loss)
    assert weights[0].shape == {"scalar": (), "vector": (3,), "matrix": (5, 3)}[kind]
    assert objective(weights) == pytest.approx(value, abs=1e-12)
    assert not weights[2].any()  # the dear one is out, exactly
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        moved = [w + 1e-3 * torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
        assert objective(moved) >= value - 1e-9


def test_held_out_rows_stop_a_proposal_where_their_loss_is_lowest():
    seen = []

    class Watched(Deep):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    def one(number, ensemble):
        return [Subnetwork("watched", Watched(1), learning_rate=0.03)]

    wrong = [(x, 2 - y) for x, y in data()]  # the better it learns, the worse this looks
    options = {"rounds": 1, "check_every": 5}
    stopped = EnsembleSearch(one, data(), 3, steps=400, held_out=wrong, patience=3, **options).run()
    assert sum(seen) < 100
    short = [EnsembleSearch(one, data(), 3, steps=steps, **options).run() for steps in range(5, 100, 5)]
    x = data()[0][0]
    assert any(
        torch.equal(stopped(x), other(x)) for other in short[:10]
    )  # as it was at one of the looks, and an early one


@pytest.mark.parametrize("mixture", ["scalar", "vector", "matrix", "mean"])
def test_ensembles_learn(mixture):
    search = EnsembleSearch(propose, data(), 3, mixture=mixture, rounds=2, steps=150)
    ensemble = search.run()
    assert accuracy(ensemble) > 0.85
    scores = [record["score"] for record in search.history]
    assert all(after <= before for before, after in itertools.pairwise(scores))
    assert len(ensemble.mixture_weights) == len(ensemble.subnetworks)
    assert "depth" in ensemble.summary()


def test_a_loader_that_shuffles():
    """Its passes differ, so what members say and the labels have to come from one pass."""
    rows = [torch.cat(parts) for parts in zip(*data(), strict=True)]
    torch.manual_seed(0)
    search = EnsembleSearch(
        propose, DataLoader(TensorDataset(*rows), batch_size=64, shuffle=True), 3, rounds=2, steps=150
    )
    assert accuracy(search.run()) > 0.85


def test_strategies_mean_what_they_say():
    options = {"rounds": 2, "steps": 60, "force_grow": True}
    grown = EnsembleSearch(propose, data(), 3, strategies=("grow",), **options).run()
    alone = EnsembleSearch(propose, data(), 3, strategies=("solo",), **options).run()
    every = EnsembleSearch(propose, data(), 3, strategies=("all",), **options).run()
    assert [len(e.subnetworks) for e in (grown, alone, every)] == [2, 1, 4]
    search = EnsembleSearch(propose, data(), 3, strategies=("grow", "solo", "all"), rounds=1, steps=20)
    search.run()
    assert set(search.history[0]["candidates"]) == {
        "grow depth 1",
        "grow depth 2",
        "solo depth 1",
        "solo depth 2",
        "all",
    }


def test_an_evaluator_decides():
    """One that likes little depth keeps depth 1 whatever the loss says; then nothing is better, and the search ends."""

    def shallow(ensemble: Ensemble) -> float:
        return float(sum(sub.complexity for sub in ensemble.subnetworks))

    search = EnsembleSearch(propose, data(), 3, rounds=3, steps=20, evaluator=shallow)
    ensemble = search.run()
    assert [sub.name for sub in ensemble.subnetworks] == ["depth 1"]
    assert search.history[-1]["refused"]
    assert len(search.history) == 2


def test_members_of_earlier_rounds_never_move():
    one = EnsembleSearch(propose, data(), 3, rounds=1, steps=60).run().members[0].state_dict()
    two = EnsembleSearch(propose, data(), 3, rounds=2, steps=60, force_grow=True, distillation=1.0).run()
    assert all(torch.equal(tensor, two.members[0].state_dict()[name]) for name, tensor in one.items())


def test_a_killed_search_goes_on(tmp_path):
    options = {"steps": 60, "force_grow": True, "mixture": "matrix"}
    file = str(tmp_path / "search.safetensors")
    whole = EnsembleSearch(propose, data(), 3, rounds=3, **options).run()
    EnsembleSearch(propose, data(), 3, rounds=1, checkpoint=file, **options).run()
    resumed = EnsembleSearch(propose, data(), 3, rounds=3, checkpoint=file, **options)
    ensemble = resumed.run()
    x = data()[0][0]
    assert torch.equal(whole(x), ensemble(x))
    assert len(resumed.history) == 3
    with pytest.raises(ms.MeristemError, match="other data or options"):
        EnsembleSearch(propose, data(), 3, checkpoint=file, steps=61).run()


def test_a_checkpoint_belongs_to_all_rows_in_any_order(tmp_path):
    file, options = str(tmp_path / "search.safetensors"), {"steps": 20, "force_grow": True}
    held = data(64)
    EnsembleSearch(propose, data(), 3, rounds=1, checkpoint=file, held_out=held, **options).run()
    rows = [torch.cat(parts) for parts in zip(*data(), strict=True)]
    loader = DataLoader(TensorDataset(*rows), batch_size=50, shuffle=True)
    resumed = EnsembleSearch(propose, loader, 3, rounds=2, checkpoint=file, held_out=held, **options)
    resumed.run()
    assert [record["round"] for record in resumed.history] == [1, 2]
    other = data()
    other[3] = (other[3][0], other[3][1].flip(0))  # the first batch is the same
    for changed in ({"data": other}, {"held_out": data(128)}):
        search = {"data": data(), "held_out": held, **options, **changed}
        with pytest.raises(ms.MeristemError, match="other data"):
            EnsembleSearch(propose, num_outputs=3, rounds=2, checkpoint=file, **search).run()


@pytest.mark.parametrize("mixture", ["scalar", "matrix"])
def test_the_state_holds_the_mixture(mixture):
    ensemble = EnsembleSearch(propose, data(), 3, mixture=mixture, rounds=2, steps=20, force_grow=True).run()
    x = data()[0][0]
    assert {"mixture_weights.0", "mixture_weights.1"} < set(ensemble.state_dict())
    twin = Ensemble(mixture)
    twin.set_members([Subnetwork(s.name, Deep(d)) for s, d in zip(ensemble.subnetworks, depths(ensemble), strict=True)],
                     [torch.zeros_like(w) for w in ensemble.mixture_weights])  # fmt: skip
    twin.load_state_dict(ensemble.state_dict())
    assert torch.equal(twin(x), ensemble(x))
    assert not any(w.requires_grad for w in ensemble.mixture_weights)


def depths(ensemble):
    return [int(sub.name.split()[-1]) for sub in ensemble.subnetworks]


def test_images_regression_and_data_loaders():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(96, 1, 6, 6, generator=generator)
    targets = images[:, 0, :3].mean((1, 2))[:, None]

    def convolutions(number, ensemble):
        body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))
        return [Subnetwork("convolution", body, learning_rate=0.01)]

    loader = DataLoader(TensorDataset(images, targets), batch_size=32)
    ensemble = EnsembleSearch(convolutions, loader, 1, rounds=2, steps=100).run()
    left = float((ensemble(images) - targets).square().mean() / targets.var())
    assert left < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixture": "tensor"}, "known: scalar, vector, matrix, mean"),
        ({"strategies": ("shrink",)}, "some of grow, solo and all"),
        ({"generator": lambda n, e: [propose(n, e)[0]] * 2}, "a name of its own"),
        ({"generator": lambda n, e: []}, "a generator must give at least one proposal"),
        ({"num_outputs": 5}, r"logits of shape \(64, 3\); expected \(64, 5\)"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ms.MeristemError, match=message):
        EnsembleSearch(**{"generator": propose, "data": data(), "num_outputs": 3, "steps": 2, **options}).run()


def test_an_empty_ensemble_says_so():
    with pytest.raises(ms.MeristemError, match="without members"):
        Ensemble("scalar")(torch.zeros(1, 2))
