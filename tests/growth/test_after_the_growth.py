"""What a growth remembers of the network that it has grown."""

from __future__ import annotations

import pico
import pytest
import torch

import meristem as ms


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_that_has_trained_on_is_refused(fused):
    """Its moments would belong to other weights than those that were grown."""
    small = pico.build("llama")
    optimizer = torch.optim.AdamW(small.parameters(), fused=fused)

    def step():
        small(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        optimizer.step()

    step()
    growth = ms.Growth.of(small, ms.HyperCloning(width=2))
    grown = growth.grow_optimizer(optimizer)
    assert {int(state["step"]) for state in grown.state.values()} == {1}
    step()
    with pytest.raises(ms.MeristemError, match=r"has changed since it was grown.* grow the network again"):
        growth.grow_optimizer(optimizer)
    assert ms.Growth.of(small, ms.HyperCloning(width=2)).grow_optimizer(optimizer).state


def test_a_network_of_inference_mode_can_be_grown():
    with torch.inference_mode():
        small = pico.build("llama")
    assert ms.Growth.of(small, ms.HyperCloning(width=2)).certificate.holds
