"""The energy, its conditionals and its gradients, against enumeration and the golden values of the method page."""

import itertools
import math

import numpy as np
import pytest
import torch

import meristem as ms
from meristem.adaptive import RBM, InfiniteRBM, OrderedRBM
from meristem.adaptive.rbm.machine import Machine
from meristem.adaptive.rbm.order import Infinite, Ordered, Unordered
from meristem.adaptive.rbm.partition import anneal, log_partition
from meristem.adaptive.rbm.visible import BinaryVisible, GaussianVisible, LabelledVisible

UNITS, INPUTS = 5, 4
i = torch.arange(1, UNITS + 1, dtype=torch.float64)
j = torch.arange(1, INPUTS + 1, dtype=torch.float64)
WEIGHTS = torch.sin(1.3 * i[:, None] + 0.7 * i[:, None] * j)
HIDDEN_BIAS, VISIBLE_BIAS = torch.cos(2.1 * i), torch.sin(0.9 * j) / 2
V = torch.tensor([[1.0, 0, 1, 1]], dtype=torch.float64)
ORDERS = [Unordered(), Ordered(), Infinite(), Ordered(penalty="constant"), Infinite(1.5, "constant")]


def machine(order, visible=None):
    return Machine(WEIGHTS, HIDDEN_BIAS, VISIBLE_BIAS, order, visible or BinaryVisible())


def states(units):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "log_z", "free_energy"),
    [
        (RBM, 6.969666743548162, None),
        (OrderedRBM, 5.152695203760807, -1.975054489609033),
        (InfiniteRBM, 8.720963033896515, -5.340798195912852),
    ],
)
def test_golden_values(kind, log_z, free_energy):
    options = {} if kind is RBM else {"penalty": "bias"}
    model = kind.from_parameters(WEIGHTS, HIDDEN_BIAS, VISIBLE_BIAS, **options)
    assert model.log_partition() == pytest.approx(log_z, abs=1e-12)
    if free_energy:
        assert float(model.free_energy(V.numpy())[0]) == pytest.approx(free_energy, abs=1e-12)


def test_golden_posteriors_and_gradients():
    ordered, infinite = machine(Ordered()), machine(Infinite())
    expected = [0.191191624, 0.260387830, 0.123351802, 0.230626180, 0.194442564]
    assert ordered.posterior(V)[0].tolist() == pytest.approx(expected, abs=1e-9)
    expected = [0.006603055, 0.008992838, 0.004260118, 0.007964980, 0.972179009]
    assert infinite.posterior(V)[0].tolist() == pytest.approx(expected, abs=1e-9)
    gradients = infinite.gradients(V)
    assert float(gradients.hidden_bias[2]) == pytest.approx(0.294052310, abs=1e-9)
    assert float(gradients.weights[1, 2]) == pytest.approx(-0.543197084, abs=1e-9)


@pytest.mark.parametrize("order", [Ordered(), Ordered(0.7), Ordered(2.0, "constant")])
def test_ordered_partition_is_the_sum_over_the_energy(order):
    prices = order.prices(HIDDEN_BIAS)
    terms = []
    for v in states(INPUTS):
        for z in range(1, UNITS + 1):
            for h in states(z):
                gain = h @ (WEIGHTS[:z] @ v + HIDDEN_BIAS[:z]) - prices[:z].sum()
                terms.append(v @ VISIBLE_BIAS + gain)
    assert log_partition(machine(order)) == pytest.approx(float(torch.logsumexp(torch.stack(terms), 0)), abs=1e-10)


def test_infinite_is_the_limit_of_ordered_ones():
    zeros = torch.zeros(4000, dtype=torch.float64)
    many = Machine(
        torch.cat([WEIGHTS, torch.zeros(4000, INPUTS, dtype=torch.float64)]),
        torch.cat([HIDDEN_BIAS, zeros]),
        VISIBLE_BIAS,
        Ordered(),
        BinaryVisible(),
    )
    assert log_partition(many) == pytest.approx(8.720963033895618, abs=1e-11)


def test_an_empty_infinite_machine():
    model = InfiniteRBM.from_parameters(torch.zeros(1, 4).double(), torch.zeros(1).double(), torch.zeros(4).double())
    ratio = 2 ** (1 - 1.01)
    assert model.log_partition() == pytest.approx(4 * math.log(2) + math.log(ratio / (1 - ratio)), abs=1e-12)
    assert model.log_partition() == pytest.approx(7.740804091019983, abs=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_both_sides_enumerate_to_one_sum(order):
    from meristem.adaptive.rbm.partition import _over_hidden, _over_visible

    sums = [torch.logsumexp(torch.stack(side(machine(order))), 0) for side in (_over_hidden, _over_visible)]
    assert float(sums[0]) == pytest.approx(float(sums[1]), abs=1e-12)


@pytest.mark.parametrize("beta, message", [
    *((beta, rf"beta > 1.*{beta:g}") for beta in (1.0, 0.5, -1.0)),
    (float("nan"), r"beta must be finite, got nan"),
])  # fmt: skip
def test_beta_of_at_most_one_is_refused(beta, message):
    with pytest.raises(ms.MeristemError, match=message):
        InfiniteRBM(beta=beta).fit([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize("penalty", ["bias", "constant"])
def test_appended_zero_units_change_nothing(penalty):
    small = machine(Infinite(1.01, penalty))
    large = Machine(
        torch.cat([WEIGHTS, torch.zeros(7, INPUTS).double()]),
        torch.cat([HIDDEN_BIAS, torch.zeros(7).double()]),
        VISIBLE_BIAS,
        small.order,
        small.visible,
    )
    v = states(INPUTS)
    torch.testing.assert_close(small.free_energy(v), large.free_energy(v), atol=1e-9, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("visible", [BinaryVisible(), GaussianVisible(0.7), LabelledVisible(BinaryVisible(), 2)])
def test_gradients_are_autograds(order, visible):
    leaves = [t.clone().requires_grad_() for t in (WEIGHTS, HIDDEN_BIAS, VISIBLE_BIAS)]
    v = states(INPUTS)[3:9]
    Machine(*leaves, order, visible).free_energy(v).mean().backward()
    ours = machine(order, visible).gradients(v)
    for leaf, gradient in zip(leaves, (ours.weights, ours.hidden_bias, ours.visible_bias), strict=True):
        torch.testing.assert_close(leaf.grad, gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_hidden_means_and_draws_follow_the_enumeration(order):
    """p(h | v) from E(v, h, z) summed over z: the mean in closed form, the draws by their frequencies."""
    subject = machine(order)
    h = states(UNITS)
    place = torch.arange(1, UNITS + 1)
    log_joint = h @ (WEIGHTS @ V[0] + HIDDEN_BIAS) + order.log_prior(HIDDEN_BIAS)[(h * place).amax(-1).long()]
    mean = torch.softmax(log_joint, 0) @ h
    torch.testing.assert_close(subject.hidden_mean(V)[0], mean, atol=1e-12, rtol=0)
    draws = subject.sample_hidden(V.expand(40000, -1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.mean(0), mean, atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", [RBM, OrderedRBM, InfiniteRBM])
def test_samples_follow_the_distribution(kind):
    model = kind.from_parameters(WEIGHTS, HIDDEN_BIAS, VISIBLE_BIAS, random_state=0)
    drawn = torch.as_tensor(model.sample(40000, gibbs_steps=50))
    code = (drawn @ (2.0 ** torch.arange(INPUTS - 1, -1, -1)).double()).long()
    frequency = torch.bincount(code, minlength=2**INPUTS) / len(code)
    exact = torch.as_tensor(np.exp(model.score_samples(states(INPUTS).numpy())))
    torch.testing.assert_close(frequency.double(), exact, atol=0.01, rtol=0)


@pytest.mark.parametrize("order", [Ordered(), Infinite()])
def test_annealing_is_near_the_exact_sum(order):
    estimate = anneal(machine(order), torch.Generator().manual_seed(1), chains=1000, count=1000)
    assert estimate.log_partition == pytest.approx(log_partition(machine(order)), abs=0.02)
    assert estimate.low < estimate.log_partition < estimate.high


@pytest.mark.parametrize("visible", [GaussianVisible(0.7), LabelledVisible(BinaryVisible(), 2)])
def test_other_visible_units_integrate_to_their_sum(visible):
    """ln Z over h in closed form against a sum (labels) or a grid (Gaussian, two inputs) over v."""
    subject = Machine(0.5 * WEIGHTS[:, :2], HIDDEN_BIAS, VISIBLE_BIAS[:2], Infinite(), visible)
    if isinstance(visible, GaussianVisible):
        line = torch.linspace(-9, 9, 361, dtype=torch.float64)
        v, cell = torch.cartesian_prod(line, line), math.log((18 / 360) ** 2)
    else:
        subject = Machine(WEIGHTS, HIDDEN_BIAS, VISIBLE_BIAS, Infinite(), visible)
        v = torch.cat([torch.cat([states(2), e.expand(4, 2)], 1) for e in torch.eye(2, dtype=torch.float64)])
        cell = 0.0
    grid = float(torch.logsumexp(-subject.free_energy(v), 0)) + cell
    assert log_partition(subject) == pytest.approx(grid, abs=1e-4)


def test_a_large_sum_is_refused():
    with pytest.raises(ms.MeristemError, match="annealed importance sampling"):
        RBM.from_parameters(torch.zeros(30, 40), torch.zeros(30), torch.zeros(40)).log_partition("exact")


def bars_and_stripes():
    stripes = states(3).repeat(1, 3)
    bars = states(3).repeat_interleave(3, 1)
    return torch.cat([stripes, bars]).unique(dim=0)


@pytest.mark.parametrize(("order", "units"), [(Infinite(), 40), (Ordered(), 12)])
def test_exact_gradients_learn_bars_and_stripes(order, units):
    data, everything = bars_and_stripes(), states(9)
    assert len(data) == 14
    generator = torch.Generator().manual_seed(0)
    values = [0.1 * torch.randn(units, 9, generator=generator).double(), torch.zeros(units).double()]
    values.append(torch.zeros(9).double())
    totals = [torch.zeros_like(value) for value in values]
    for _ in range(6000):
        subject = Machine(*values, order, BinaryVisible())
        shares = torch.softmax(-subject.free_energy(everything), 0)  # the exact model expectation
        model = subject.gradients(everything, shares)
        for value, total, name in zip(values, totals, ("weights", "hidden_bias", "visible_bias"), strict=True):
            gradient = getattr(subject.gradients(data), name) - getattr(model, name)
            total += gradient**2
            value -= 0.05 * gradient / (total + 1e-6).sqrt()
    subject = Machine(*values, order, BinaryVisible())
    assert -float(subject.free_energy(data).mean()) - log_partition(subject) > -2.72
