"""Backward-error analysis against brute force: the flow of the corrected field meets the discrete steps at the predicted orders."""

import math

import pico
import pytest
import torch
from torch import nn
from torch.func import functional_call

import meristem as ms
from meristem.anatomy.inputs import example_inputs
from meristem.dynamics import gradient, junction, junction_learning_rate, lie_bracket, modified_loss
from meristem.dynamics.fields import hessian_product
from meristem.dynamics.junction import language_loss, restricted, warmup_steps
from meristem.growth import Growth
from meristem.growth.fuse import fuse_with_certificate


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def fused_pair(same):
    """A fused pair of tanh networks in float64, the losses before and after, and the point."""
    torch.manual_seed(0)
    a, b = Net(5).double(), Net(5).double()
    b = a if same else b
    anatomy = ms.Anatomy.infer(Net, {"hidden": 5})
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    fusion = fuse_with_certificate([a, b], ms.DeepFusion(noise=0.0), anatomies=[anatomy] * 2, inputs={"x": x})

    def forward(model, parameters):
        return (functional_call(model, dict(parameters), (x,)) - y).square().mean()

    def before(theta):
        parts = [
            forward(p, restricted(plan, p, theta, fused=True)) for plan, p in zip(fusion.plans, (a, b), strict=True)
        ]
        return 0.5 * (parts[0] + parts[1])

    def after(theta):
        return forward(fusion.model, theta)

    theta = {name: p.detach() for name, p in fusion.model.named_parameters()}
    return fusion, (a, b), forward, before, after, theta


def add(a, b, factor=1.0):
    return {name: a[name] + factor * b[name] for name in a}


def distance(a, b):
    return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in a))


def test_hessian_products_are_derivatives_of_gradients():
    _, _, _, _, after, theta = fused_pair(same=False)
    v = {name: torch.randn_like(p) for name, p in theta.items()}
    numeric = {
        name: (up - down) / 2e-5
        for (name, up), down in zip(
            gradient(after, add(theta, v, 1e-5)).items(), gradient(after, add(theta, v, -1e-5)).values(), strict=True
        )
    }
    assert distance(hessian_product(after, theta, v), numeric) < 1e-6


@pytest.mark.parametrize("steps", [(1, 1), (3, 2)])
def test_the_corrected_flow_meets_the_steps_at_the_predicted_orders(steps):
    """Distances fall as h^2 without correction and with flatness alone, as h^3 with the bracket."""
    _, _, _, before, after, theta = fused_pair(same=False)
    n_g, n_f = steps

    def discrete(h):
        point = theta
        for loss, count in ((before, n_g), (after, n_f)):
            for _ in range(count):
                point = add(point, gradient(loss, point), -h)
        return point

    def field(point, h, flat, bracket):
        g, f = gradient(before, point), gradient(after, point)
        total = {name: -n_g * h * g[name] - n_f * h * f[name] for name in point}
        if flat:  # -1/2 n h^2 g'g, and g'g = H grad E
            total = add(total, hessian_product(before, point, g), -0.5 * n_g * h * h)
            total = add(total, hessian_product(after, point, f), -0.5 * n_f * h * h)
        return add(total, lie_bracket(before, after, point), 0.5 * n_g * n_f * h * h) if bracket else total

    def flow(h, flat, bracket, parts=8):
        point = theta
        for _ in range(parts):  # Runge-Kutta of fourth order
            k1 = field(point, h, flat, bracket)
            k2 = field(add(point, k1, 0.5 / parts), h, flat, bracket)
            k3 = field(add(point, k2, 0.5 / parts), h, flat, bracket)
            k4 = field(add(point, k3, 1 / parts), h, flat, bracket)
            for k, factor in ((k1, 1), (k2, 2), (k3, 2), (k4, 1)):
                point = add(point, k, factor / 6 / parts)
        return point

    def order(flat, bracket):
        errors = [distance(flow(h, flat, bracket), discrete(h)) for h in (0.02, 0.01)]
        return math.log2(errors[0] / errors[1])

    assert order(False, False) == pytest.approx(2, abs=0.25)
    assert order(True, False) == pytest.approx(2, abs=0.35)
    assert order(True, True) == pytest.approx(3, abs=0.25)


def test_the_bracket_is_what_the_order_of_training_changes():
    _, _, _, before, after, theta = fused_pair(same=False)
    h = 1e-3

    def train(*losses):
        point = theta
        for loss in losses:
            point = add(point, gradient(loss, point), -h)
        return point

    measured = {n: v / h**2 for n, v in add(train(before, after), train(after, before), -1.0).items()}
    predicted = lie_bracket(before, after, theta)
    assert distance(measured, predicted) < 0.02 * distance(
        predicted, {n: torch.zeros_like(v) for n, v in predicted.items()}
    )


def test_self_fusion_conflicts_less_than_fusion_of_two():
    found = {}
    for same in (True, False):
        fusion, parents, forward, *_ = fused_pair(same)
        found[same] = junction(fusion.plans, parents, fusion.model, forward, fusion.weights)
    assert found[True].loss_before == pytest.approx(found[True].loss_after)
    assert found[False].loss_after < found[False].loss_before  # convexity
    assert found[True].cosine > found[False].cosine
    assert found[True].conflict < found[False].conflict
    assert junction_learning_rate(found[True]) > junction_learning_rate(found[False]) > 0


def test_with_second_moments_it_is_the_bracket_of_steps_that_adam_makes():
    """theta' = theta - h P grad E, P fixed: what the order of both trainings changes, in the coordinates P^-1/2 theta."""
    fusion, parents, forward, before, after, theta = fused_pair(same=False)
    torch.manual_seed(3)
    moments = {name: torch.rand_like(p) + 0.1 for name, p in theta.items()}
    unknown = torch.zeros_like(theta["second.weight"], dtype=torch.bool)
    unknown[:5, 5:] = True  # a cross block
    moments["second.weight"][unknown] = torch.nan
    v = {name: moment.clone() for name, moment in moments.items()}
    v["second.weight"][unknown] = gradient(after, theta)["second.weight"][unknown].square().mean()
    rates, h = {name: 1 / (moment.sqrt() + 1e-8) for name, moment in v.items()}, 1e-3

    def train(*losses):
        point = theta
        for loss in losses:
            found = gradient(loss, point)
            point = {name: point[name] - h * rates[name] * found[name] for name in point}
        return point

    one, other = train(before, after), train(after, before)
    moved = math.sqrt(sum(float(((one[n] - other[n]) / h**2 / rates[n].sqrt()).square().sum()) for n in theta))
    measured = junction(fusion.plans, parents, fusion.model, forward, fusion.weights, moments)
    assert measured.bracket == pytest.approx(moved, rel=0.02)
    descent = math.sqrt(sum(float((g * rates[n].sqrt()).square().sum()) for n, g in gradient(after, theta).items()))
    assert measured.gradient_after == pytest.approx(descent)
    assert measured.loss_after == pytest.approx(float(after(theta)))


def test_a_warm_up_begins_at_the_junctions_rate():
    assert warmup_steps(1e-5, 1e-3) == 100
    assert warmup_steps(2e-3, 1e-3) == 0
    assert warmup_steps(math.inf, 1e-3) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_the_way_back_is_the_small_network(family):
    small = pico.build(family)
    growth = Growth.of(small, ms.HyperCloning(width=2, noise=0.1))
    back = restricted(growth.plans[0], small, dict(growth.model.named_parameters()))
    for name, parameter in small.named_parameters():
        assert torch.allclose(back[name], parameter, atol=1e-5), name


def test_a_growth_point_of_a_language_model():
    small = pico.build("llama")
    growth = Growth.of(small, ms.HyperCloning(width=2))
    tokens = example_inputs(small)["input_ids"]
    measured = junction(growth.plans, [small], growth.model, language_loss({"input_ids": tokens, "labels": tokens}))
    assert measured.loss_before == pytest.approx(measured.loss_after, abs=1e-5)
    assert 0 < measured.cosine <= 1 + 1e-6
    value, flatness = modified_loss(lambda p: language_loss({"input_ids": tokens, "labels": tokens})(growth.model, p),
                                    dict(growth.model.named_parameters()), 0.1)  # fmt: skip
    assert value == pytest.approx(measured.loss_after, abs=1e-5)
    assert flatness == pytest.approx(0.1 * measured.flatness_after, rel=1e-4)
