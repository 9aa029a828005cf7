"""Majority Kernels of networks that have been trained, and what becomes of them when they are saved or grown."""

from __future__ import annotations

import warnings

import pico
import pytest
import torch
from torch import nn

import meristem as ms


def trained() -> tuple[nn.Module, torch.Tensor]:
    """A small perceptron that has learned to tell digits, and some of these."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(400):
        batch = slice(64 * step % 1536, 64 * step % 1536 + 64)
        loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = float((net(images).argmax(1) == labels).float().mean())
    assert accuracy > 0.93
    return net, images


def test_a_trained_convolutional_network_is_told_from_a_fresh_one():
    """Its kernels alone do not tell (none stands out); its batch norms do. The fresh one may have run, too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    images = torch.randn(32, 1, 8, 8)
    net(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ms.majority(net, kernels=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(images).square().sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match='look trained: start="scratch"'):
        ms.majority(net, kernels=2)


def test_a_trained_network_is_told_from_a_fresh_one():
    net, images = trained()
    with pytest.warns(UserWarning, match=r'look trained: start="scratch" .* start="clone" keeps it'):
        ms.majority(net, kernels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cloned = ms.majority(net, kernels=3, start="clone")
        ms.majority(pico.build("llama"), kernels=3)
        fresh = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Linear(48, 32))
        ms.majority(fresh, kernels=3)
    torch.testing.assert_close(ms.deploy(cloned)(images), net(images), rtol=1e-4, atol=1e-4)


def test_what_is_saved_is_the_deployed_network(tmp_path):
    model = pico.build("llama")
    many = ms.majority(model, kernels=3, start="clone", noise=0.0)
    many.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    tokens = torch.randint(3, 60, (2, 9))
    torch.testing.assert_close(loaded(tokens).logits, model.eval()(tokens).logits, rtol=1e-4, atol=1e-5)
    assert type(ms.deploy(many)) is type(model)


def test_a_majority_network_is_deployed_before_it_grows():
    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(7, width), nn.ReLU(), nn.Linear(width, 3))

    anatomy = ms.Anatomy.infer(build, {"width": 8})
    inputs = {"input": torch.randn(5, 7)}
    many = ms.majority(build(8), kernels=2)
    with pytest.raises(ms.MeristemError, match=r"several kernels, .*ms\.deploy\(model\) makes a plain network"):
        ms.grow(many, ms.HyperCloning(width=2), anatomy=anatomy, inputs=inputs)
    plain = ms.deploy(many)
    grown = ms.grow(plain, ms.HyperCloning(width=2), anatomy=anatomy, inputs=inputs)
    torch.testing.assert_close(grown(**inputs), plain(**inputs), rtol=1e-4, atol=1e-5)
