"""The examples in docstrings of public names run as they are written, and make what they say."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pico
import pytest
import torch

import meristem as ms


def example_of(name: str) -> str:
    """The indented block before the sections of a docstring."""
    text = inspect.getdoc(getattr(ms, name)) or ""
    before = re.split(r"^(?:Args|Attributes|Raises|Returns|Yields):$", text, flags=re.M)[0]
    return "\n".join(line[4:] for line in before.splitlines() if line.startswith("    ") or not line.strip())


def names(**more: Any) -> dict[str, Any]:
    tokens = torch.arange(2, 18).reshape(2, 8)
    return {"ms": ms, "torch": torch, "batch": {"input_ids": tokens, "labels": tokens}, **more}


def ran(name: str, **more: Any) -> dict[str, Any]:
    found = names(**more)
    exec(compile(example_of(name), f"<example of ms.{name}>", "exec"), found)
    return found


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    tokens = torch.arange(2, 18).reshape(2, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def test_grow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = pico.build("llama")
    ms.grow(small, ms.HyperCloning(width=3)).config.save_pretrained("target")

    made = ran("grow", small=small)

    width = small.config.hidden_size
    sizes = [(made[n].config.hidden_size, made[n].config.num_hidden_layers) for n in ("big", "deep", "both", "like")]
    depth = small.config.num_hidden_layers
    assert sizes == [(2 * width, depth), (width, 6), (2 * width, 6), (3 * width, depth)]


def test_shrink():
    model = ms.grow(pico.build("llama"), ms.LEMON(intermediate_size=128))

    made = ran("shrink", model=model)

    assert made["half"].config.intermediate_size == made["pruned"].config.intermediate_size == 64


@pytest.mark.parametrize("name", ["grow_optimizer", "Growth"])
def test_a_grown_optimizer_belongs_to_the_large_network(name):
    small = pico.build("llama")

    made = ran(name, small=small, optimizer=adamw(small))

    trained = [p for group in made["optimizer"].param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in made["big"].parameters()}
    assert made["optimizer"].state[trained[0]]["exp_avg"].shape == trained[0].shape


def test_fuse():
    a, b = pico.build("llama", seed=0), pico.build("llama", seed=1)

    made = ran("fuse", a=a, b=b)

    tokens = made["batch"]["input_ids"]
    mean = (a(tokens).logits + b(tokens).logits) / 2
    torch.testing.assert_close(made["exact"](tokens).logits, mean, atol=1e-5, rtol=1e-4)
    assert made["wide"].config.hidden_size == 2 * a.config.hidden_size
    assert made["same_size"].config.hidden_size == a.config.hidden_size


def test_fuse_optimizer():
    a, b = pico.build("llama", seed=0), pico.build("llama", seed=1)

    made = ran("fuse_optimizer", a=a, b=b, optimizer_a=adamw(a), optimizer_b=adamw(b))

    assert len(made["optimizer"].state) == len(list(made["fusion"].model.parameters()))


def test_verify():
    small = pico.build("llama")

    assert ran("verify", small=small, big=ms.grow(small, ms.HyperCloning(width=2)))["certificate"].holds


def test_deploy():
    model = pico.build("llama")

    plain = ran("deploy", model=model, loader=[1, 2])["plain"]

    assert type(plain) is type(model)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_assemble():
    meta = ms.grow(pico.build("llama"), ms.IdentityBlocks(num_hidden_layers=3))

    assert ran("assemble", meta=meta)["large"].config.num_hidden_layers == 6


def test_train_only_what_is_new():
    model = pico.build("llama")

    made = ran("freeze_old", model=model)

    new = made["growth"].new_layers["layers"]
    trained = {name for name, p in made["growth"].model.named_parameters() if p.requires_grad}
    assert trained
    assert all(any(f".layers.{layer}." in name for layer in new) for name in trained)


def test_parameter_groups():
    growth = ms.Growth.of(pico.build("llama"), ms.IdentityBlocks(depth=2))

    groups = ran("parameter_groups", model=growth.model, growth=growth)["optimizer"].param_groups

    assert {group["provenance"]: group["lr"] for group in groups} == {"old": 1e-4, "fresh": 1e-3}
