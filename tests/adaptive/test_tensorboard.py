"""The records of a search, read back as TensorBoard reads them."""

import builtins

import pytest
import torch
from sklearn.datasets import make_moons
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from meristem.adaptive import AdaNetClassifier, EnsembleSearch, Subnetwork
from meristem.adaptive.tensorboard import Scalars
from meristem.errors import MeristemError

X, Y = make_moons(200, noise=0.2, random_state=0)


def scalars(folder, name):
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def small(**options):
    return AdaNetClassifier(width=8, max_steps=60, random_state=0, min_improvement=0.0, **options)


def test_every_round_is_there(tmp_path):
    fitted = small(max_rounds=3, log_dir=str(tmp_path)).fit(X, Y)
    seen = scalars(tmp_path, "objective")
    assert [step for step, _ in seen] == [record["round"] for record in fitted.history_]
    assert [value for _, value in seen] == pytest.approx([record["objective"] for record in fitted.history_])
    (first, *_) = scalars(tmp_path, "candidates/0/units_used")
    assert first == (1, fitted.history_[1]["candidates"][0]["units_used"])


def test_a_resumed_search_goes_on_with_its_curves(tmp_path):
    file, folder = str(tmp_path / "state"), tmp_path / "logs"
    small(max_rounds=1, log_dir=str(folder), checkpoint=file).fit(X, Y)
    small(max_rounds=3, log_dir=str(folder), checkpoint=file).fit(X, Y)
    assert [step for step, _ in scalars(folder, "objective")] == [0, 1, 2, 3]


def test_single_units(tmp_path):
    fitted = small(variant="CVX", log_dir=str(tmp_path)).fit(X, Y)
    assert len(scalars(tmp_path, "units/0")) == len(fitted.history_) - 1  # none at the start


def test_ensembles(tmp_path):
    data = [(torch.tensor(X, dtype=torch.float32), torch.tensor(Y))]

    def propose(number, ensemble):
        return [Subnetwork(f"units {n}", nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 2))) for n in (4, 8)]

    search = EnsembleSearch(propose, data, 2, rounds=2, steps=20, log_dir=str(tmp_path))
    search.run()
    expected = [(record["round"], pytest.approx(record["score"])) for record in search.history]
    assert scalars(tmp_path, "score") == expected
    assert scalars(tmp_path, "candidates/grow units 4")[0][0] == 1


def test_tensorboard_is_asked_for_by_name(tmp_path, monkeypatch):
    find = builtins.__import__

    def without(name, *rest):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return find(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MeristemError, match=r"meristem-nn\[tensorboard\]"):
        Scalars(str(tmp_path))
    Scalars(None).write({"objective": 1.0}, 0)
