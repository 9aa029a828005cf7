"""FLOPs by shapes: the same as a real run's, mixtures and checkpointing included; what is not known is refused."""

from __future__ import annotations

import pico
import pytest
import torch
from torch import nn

import meristem as ms
from meristem import MeristemError
from meristem.anatomy import flops, flops_by_shapes
from meristem.anatomy.flops import block_flops, forward_flops, training_flops
from meristem.anatomy.flops_by_shapes import by_shapes
from meristem.anatomy.inputs import example_inputs
from meristem.subnetworks.blocks import lists_of_blocks
from meristem.subnetworks.flops import PathFlops
from meristem.subnetworks.gate import along
from meristem.subnetworks.path import Path


def batch(model):
    inputs = example_inputs(model, 1, 24)
    tokens = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    return {**inputs, "labels": torch.zeros(1, dtype=torch.long) if tokens is None else tokens}


def really_run(model, inputs):
    return flops._by_running(flops._TrainingStep(model.train()), inputs, ()).total


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_shapes_count_what_a_run_counts(family):
    model = pico.build(family)
    inputs = batch(model)
    assert by_shapes(flops._TrainingStep(model.train()), inputs, ()) is not None
    assert training_flops(model, inputs) == really_run(model, inputs)


@pytest.mark.parametrize("family", ["llama", "t5", "mixtral", "bert"])
def test_what_is_computed_again_is_counted(family):
    model = pico.build(family)
    inputs = batch(model)
    plain = training_flops(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = training_flops(model, inputs)
    assert again == really_run(model, inputs)
    assert plain < again < plain * 4 / 3 + 1


def test_a_mixture_counts_the_experts_that_a_token_meets():
    """6 N T for the weights that a token passes, two of four experts, and attention as everywhere."""
    model = pico.build("mixtral")
    inputs = batch(model)
    length = inputs["input_ids"].shape[1]
    passed = sum(
        parameter.numel() // 2 if "experts" in name else parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and "embed" not in name
    )
    attention = 7 * 2 * length * length * model.config.hidden_size * model.config.num_hidden_layers
    assert training_flops(model, inputs) == 6 * passed * length + attention


def test_counting_leaves_weights_gradients_and_random_numbers_alone():
    model = pico.build("llama", attention_dropout=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    state = torch.get_rng_state()
    training_flops(model, batch(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.lm_head.weight.grad, torch.ones_like(model.lm_head.weight))
    assert not model.training


class OfValues(nn.Module):
    """Looks at a value before it multiplies."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, labels=None):
        steps = int(x[0, 0].abs()) + 1
        for _ in range(steps):
            x = self.linear(x)
        return type("Output", (), {"loss": x.sum(), "logits": x})()


def test_a_network_that_looks_at_values_is_run():
    x = torch.full((2, 4), 2.0)
    assert forward_flops(OfValues(), {"x": x}) == 3 * 2 * 2 * 4 * 4


def test_a_mixture_that_casts_its_router_costs_the_dense_network_and_the_router():
    """Switch: one expert for a token, a router of 32 x 4 in each of 2 + 2 blocks; forward, and twice as much backward."""
    small = pico.build("t5")
    big = ms.grow(small, ms.Upcycle(num_experts=4, experts_per_token=1))
    inputs = batch(small)
    tokens = 2 * (inputs["input_ids"].numel() + inputs["labels"].numel())
    assert training_flops(big, inputs) - training_flops(small, inputs) == 3 * 2 * 32 * 4 * tokens


def test_a_triangular_system_costs_a_substitution():
    """n^2 operations for each of k columns, and as much backward for the right-hand side, and n^2 k products for the matrix."""

    class Solved(OfValues):
        def forward(self, x, labels=None):
            y = torch.linalg.solve_triangular(self.linear.weight.tril(), x.T, upper=False)
            return type("Output", (), {"loss": y.sum(), "logits": y})()

    x = torch.randn(3, 4)
    assert forward_flops(Solved(), {"x": x}) == 4 * 4 * 3
    assert training_flops(Solved(), {"x": x}) == 4 * 4 * 3 + 4 * 4 * 3 + 2 * 4 * 4 * 3


class Drawn(nn.Module):
    """Takes a draw of its own on the CPU, as LayerDrop does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, labels=None):
        kept = bool(torch.rand([]) < 2)
        x = self.linear(x) if kept else x
        return type("Output", (), {"loss": x.sum(), "logits": x})()


@pytest.mark.parametrize("network", [Drawn(), OfValues()])
def test_nothing_is_drawn_to_count_a_network_that_looks_at_draws(network):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert by_shapes(flops._Forward(network), {"x": torch.ones(2, 4)}, ()) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert forward_flops(network, {"x": torch.zeros(2, 4)}) == 2 * 2 * 4 * 4
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", ["llama", "t5", "mixtral", "bert", "vit"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_meta_device_counts_as_the_cpu(family, dropout):
    """Attention takes another operator with dropout, and another on the meta device by itself."""
    more = {"dropout_rate": dropout} if family == "t5" else {"attention_dropout": dropout}
    more = {"attention_probs_dropout_prob": dropout} if family in ("bert", "vit") else more
    model = pico.build(family, **more).train()
    step, inputs = flops._TrainingStep(model), batch(model)
    on_meta = flops_by_shapes._on_meta(step, inputs, ())
    assert on_meta is not None
    assert on_meta.total == really_run(model, inputs)


def test_an_unknown_operator_is_refused():
    @torch.library.custom_op("meristem_tests::scaled", mutates_args=())
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    scaled.register_fake(lambda x: torch.empty_like(x))

    class Custom(OfValues):
        def forward(self, x, labels=None):
            y = scaled(self.linear(x))
            return type("Output", (), {"loss": y.sum(), "logits": y})()

    class Recurrent(OfValues):
        def forward(self, x, labels=None):
            y = torch.linalg.solve(self.linear.weight, x.T)
            return type("Output", (), {"loss": y.sum(), "logits": y})()

    for network, name in ((Custom(), "meristem_tests::scaled"), (Recurrent(), "linalg_solve")):
        with pytest.raises(MeristemError, match=name):
            forward_flops(network, {"x": torch.randn(4, 4)})


@pytest.mark.parametrize("family", ["llama", "t5", "mixtral"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_path_costs_what_its_run_costs(family, checkpointing):
    model = pico.build(family)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = batch(model)
    paths = {blocks.name: Path.full(len(blocks.modules)) for blocks in lists_of_blocks(model)}
    first = next(iter(paths))
    counter = PathFlops(model, inputs)
    for path in (Path((True, False), (1.0, 1.0)), Path((True, True), (1.0, 1.0), frozen=frozenset({0}))):
        with along(model, {**paths, first: path}):
            expected = really_run(model, inputs)
        assert counter.of({**paths, first: path}) == expected


def test_blocks_of_a_forward_pass():
    model = pico.build("llama", num_hidden_layers=3)
    inputs = {"input_ids": torch.randint(3, 67, (1, 16))}
    blocks = block_flops(model, ["model.layers"], inputs)
    head = 2 * 16 * 32 * 67
    assert len(set(blocks)) == 1
    assert sum(blocks) + head == forward_flops(model, inputs)
