"""Growth where the network lies (run by `test_devices.py`): on a device that every machine has (`elsewhere`), and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pico
import pytest
import torch
from test_optimizer import batches
from torch import nn

import meristem as ms
from meristem.growth.optimizers.optimizer import load_named_state, named_state

GPU = pytest.param(
    torch.device("cuda"),
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")],
)


@pytest.fixture(params=["elsewhere", GPU], ids=["elsewhere", "cuda"])
def device(request) -> Iterator[torch.device]:
    if request.param != "elsewhere":
        yield request.param
        return
    from elsewhere import DEVICE, Elsewhere  # not before: autograd on a GPU fails where another backend is registered

    with Elsewhere():
        yield DEVICE


def places(model: nn.Module) -> set[torch.device]:
    return {torch.device(t.device.type) for t in (*model.parameters(), *model.buffers())}


def assert_same(here: nn.Module, there: nn.Module, device: torch.device) -> None:
    """All of `there` lies on the device, and holds what `here` holds."""
    assert places(there) == {torch.device(device.type)}
    for name, tensor in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name].cpu(), tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", [
    ms.HyperCloning(width=2, noise=0.1), ms.LEMON(width=2, num_hidden_layers=4), ms.Net2Net(width=2, noise=0.1), ms.AKI(width=2),
])  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "gemma2", "t5", "gpt2"])
def test_grown_where_the_source_lies(device, family, method):
    small = pico.build(family)
    here = ms.Growth.of(small, method)
    there = ms.Growth.of(pico.build(family).to(device), method)
    assert_same(here.model, there.model, device)
    assert there.certificate.device.startswith(device.type)
    assert there.certificate.holds == here.certificate.holds


def test_what_needs_a_trial_gets_it_there(device):
    from test_pipeline import deberta

    small = deberta()
    assert_same(
        ms.grow(small, ms.HyperCloning(width=2)), ms.grow(deberta().to(device), ms.HyperCloning(width=2)), device
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_there(device, dtype):
    growth = ms.Growth.of(pico.build("llama").to(dtype).to(device), ms.HyperCloning(width=3, noise=0.1))
    assert places(growth.model) == {torch.device(device.type)}
    assert growth.certificate.holds
    assert growth.certificate.relative_error <= 1e-6


@pytest.mark.parametrize("selection", ["uniform", "magnitude"])
def test_shrunk_there(device, selection):
    method = ms.WeightSelection(hidden_size=16, num_attention_heads=2, intermediate_size=22, selection=selection)
    assert_same(ms.shrink(pico.build("llama"), method), ms.shrink(pico.build("llama").to(device), method), device)


@pytest.mark.parametrize("norm", ["plain", "equalised", "grouped"])
def test_fused_there(device, norm):
    here = [pico.build("llama", seed) for seed in range(2)]
    there = [pico.build("llama", seed).to(device) for seed in range(2)]
    fused = ms.fuse_with_certificate(there, ms.DeepFusion(norm=norm))
    assert_same(ms.fuse(here, ms.DeepFusion(norm=norm)), fused.model, device)
    alike = ms.fuse([there[0], there[0]])
    assert_same(ms.fuse([here[0], here[0]]), alike, device)


def test_verified_across_devices(device):
    small = pico.build("llama")
    big = ms.grow(small, ms.HyperCloning(width=2)).to(device)
    assert ms.verify(small, big).holds
    assert ms.verify(small.to(device), big, {"input_ids": torch.ones(1, 5, dtype=torch.long)}).holds


@pytest.mark.parametrize("method", [ms.HyperCloning(width=2, noise=0.0), ms.IdentityBlocks(depth=2)])
def test_the_optimizer_follows_there(device, method):
    def grown(place: torch.device) -> tuple[ms.Growth, torch.optim.Optimizer]:
        small = pico.build("llama").to(place)
        optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3, foreach=False, fused=False)
        for parameter in small.parameters():  # a state as two steps with this gradient leave it
            parameter.grad = torch.full_like(parameter, 0.01)
        optimizer.step()
        optimizer.step()
        growth = ms.Growth.of(small, method)
        return growth, growth.grow_optimizer(optimizer)

    (here, ours), (there, theirs) = grown(torch.device("cpu")), grown(device)
    expected, found = named_state(ours, here.model), named_state(theirs, there.model)
    for name, entries in expected.items():
        for key, value in entries.items():
            torch.testing.assert_close(found[name][key].cpu(), value)
            assert key == "step" or found[name][key].device.type == device.type, (name, key)
    for parameter in there.model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    theirs.step()  # and the correction behind it runs there too


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_trajectory_there(device, options, noise):
    """Grown in mid-run, in float32: the first losses are the small network's."""
    small = pico.build("llama").to(device)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3, **options)
    for tokens in batches(12, 0):
        step_there(small, optimizer, tokens, device)
    growth = ms.Growth.of(small, ms.HyperCloning(width=2, noise=noise))
    carried = growth.grow_optimizer(optimizer, scale_learning_rate=True)
    gaps = [
        abs(step_there(small, optimizer, t, device) - step_there(growth.model, carried, t, device))
        for t in batches(10, 1)
    ]
    assert max(gaps) < 1e-3


@pytest.mark.parametrize(
    "options", [{"foreach": False}, {"fused": True}, {"capturable": True, "foreach": False}], ids=str
)
def test_a_state_from_a_file_goes_where_its_optimizer_counts(device, options):
    """Recipes read a grown state on the CPU; fused and capturable optimizers count their steps beside the weights."""
    model = pico.build("llama").to(device)
    tokens = next(iter(batches(1, 0)))
    before = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
    step_there(model, before, tokens, device)
    on_cpu = {
        name: {key: value.cpu() for key, value in entries.items()}
        for name, entries in named_state(before, model).items()
    }
    after = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
    load_named_state(after, model, on_cpu)
    step_there(model, after, tokens, device)
    for parameter in model.parameters():
        assert float(after.state[parameter]["step"]) == 2
        assert after.state[parameter]["step"].device == before.state[parameter]["step"].device


@pytest.mark.parametrize("method", [ms.HyperCloning(width=2, noise=0.1), ms.LEMON(width=2), ms.IdentityBlocks(depth=2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sampled_proof_there(device, method, dtype):
    growth = ms.Growth.of(pico.build("llama").to(dtype).to(device), method, sample=2)
    assert growth.certificate.holds
    assert growth.certificate.device.startswith(device.type)


def step_there(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, device: torch.device) -> float:
    optimizer.zero_grad()
    loss = model(input_ids=tokens.to(device), labels=tokens.to(device)).loss
    loss.backward()
    optimizer.step()
    return loss.item()
