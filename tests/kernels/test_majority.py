"""Majority Kernels: what is deployed, what gradients are, and that the random combinations are a pure function."""

import pico
import pytest
import torch
from torch import nn

import meristem as ms
from meristem.anatomy.inputs import example_inputs
from meristem.kernels.majority import deployed_state, mixtures, safe_learning_rate_factor
from meristem.kernels.mixture import Mixing

FAMILIES = ["llama", "gpt2", "bert", "t5", "vit", "mixtral", "gpt_neox"]


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def step(model, optimizer, number, total=None):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(number))
    if any(True for _ in mixtures(model)):
        ms.mix_kernels(model, number, total)
    optimizer.zero_grad()
    loss = model(x).logsumexp(1).mean() + model(x).square().mean()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_deployed_network_is_the_mean_and_loads_in_stock_transformers(family, tmp_path):
    model = pico.build(family)
    many = ms.majority(model, kernels=3)
    inputs = example_inputs(model)
    plain = ms.deploy(many)
    assert type(plain) is type(model)
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    for module, name, _ in mixtures(many):
        path = next(p for p, m in many.named_modules() if m is module)
        mean = module.parametrizations[name].original.mean(0)
        assert torch.allclose(plain.get_submodule(path).get_parameter(name), mean)
    with torch.no_grad():
        assert torch.equal(plain.eval()(**inputs).logits, many.eval()(**inputs).logits)
        plain.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(again(**inputs).logits, plain(**inputs).logits)
    with pytest.raises(ms.MeristemError, match="no kernels"):
        ms.deploy(plain)


def test_a_clone_is_the_network_it_came_from():
    model = pico.build("llama")
    inputs = example_inputs(model)
    many = ms.majority(model, kernels=4, start="clone", noise=0.3)
    with torch.no_grad():
        assert torch.allclose(ms.deploy(many).eval()(**inputs).logits, model(**inputs).logits, atol=1e-5)
    ms.mix_kernels(many, 0)
    with torch.no_grad():
        assert not torch.allclose(many.train()(**inputs).logits, model(**inputs).logits, atol=1e-3)


def test_a_grown_network_can_get_kernels():
    """HyperCloning first, then kernels around the clone."""
    model = pico.build("llama")
    big = ms.grow(model, ms.HyperCloning(width=2, noise=0.1))
    inputs = example_inputs(model)
    with torch.no_grad():
        deployed = ms.deploy(ms.majority(big, start="clone"))
        assert torch.allclose(deployed.eval()(**inputs).logits, model(**inputs).logits, atol=1e-4)


@pytest.mark.parametrize("granularity", ["layer", "unit", "entry"])
def test_the_gradient_of_a_kernel_is_its_share(granularity):
    many = ms.majority(mlp(), kernels=3, granularity=granularity)
    ms.mix_kernels(many, 4)
    layer = many[0]
    weight = layer.weight.detach().clone().requires_grad_()
    x = torch.randn(5, 6)
    nn.functional.linear(x, weight, layer.bias).square().sum().backward()
    layer(x).square().sum().backward()
    shares = layer.parametrizations.weight[0].weights
    assert torch.allclose(shares.sum(0), torch.ones(()))
    gradient = layer.parametrizations.weight.original.grad
    assert torch.allclose(gradient, shares * weight.grad, atol=1e-5)
    assert torch.allclose(gradient.sum(0), weight.grad, atol=1e-5)


def test_without_randomness_and_with_sgd_it_is_the_plain_network_at_a_kth_of_the_rate():
    k, model = 3, mlp().double()
    many = ms.majority(model, kernels=k, epsilon=0.0, start="clone", noise=0.5)
    plain = torch.optim.SGD([{"params": [p for p in model.parameters() if p.dim() == 2], "lr": 0.1 / k},
                             {"params": [p for p in model.parameters() if p.dim() == 1], "lr": 0.1}])  # fmt: skip
    ours = torch.optim.SGD(many.parameters(), lr=0.1)
    for number in range(20):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        for network, optimizer in ((model, plain), (many, ours)):
            if network is many:
                ms.mix_kernels(many, number)
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    for ours_, theirs in zip(ms.deploy(many).parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours_, theirs, atol=1e-12)


def test_draws_depend_on_seed_step_and_layer_only():
    mixing = Mixing(kernels=3, seed=1)
    shape = torch.Size((4, 5))
    a = mixing.draw(shape, 7, "x", None)
    assert torch.equal(a, mixing.draw(shape, 7, "x", None))
    assert not torch.equal(a, mixing.draw(shape, 8, "x", None))
    assert not torch.equal(a, mixing.draw(shape, 7, "y", None))
    assert a.shape == (3, 4, 1)
    assert Mixing(granularity="layer").draw(shape, 0, "x", None).shape == (3, 1, 1)
    assert Mixing(granularity="entry").draw(shape, 0, "x", None).shape == (3, 4, 5)


def test_annealing_ends_in_the_mean():
    mixing = Mixing(kernels=4, anneal=0.2)
    assert mixing.epsilon_at(0, 100) == mixing.epsilon_at(79, 100) == 1
    assert mixing.epsilon_at(90, 100) == pytest.approx(0.5)
    assert mixing.epsilon_at(100, 100) == 0
    assert torch.allclose(mixing.draw(torch.Size((2, 2)), 100, "x", 100), torch.tensor(0.25))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_scales_at_the_start(alpha):
    """The mean of k independent kernels has a k-th of the variance, a combination (alpha + 1) / (k alpha + 1) of it."""
    torch.manual_seed(0)
    model, k = nn.Sequential(nn.Linear(300, 400)), 3
    std = model[0].weight.detach().std()
    for gain, mean, mixed in (("none", k**-0.5, safe_learning_rate_factor(k, alpha) ** -0.5),
                              ("deployed", 1.0, None), ("training", None, 1.0)):  # fmt: skip
        many = ms.majority(model, kernels=k, alpha=alpha, gain=gain)
        if mean is not None:
            assert float(ms.deploy(many)[0].weight.detach().std() / std) == pytest.approx(mean, rel=0.02)
        if mixed is not None:
            ms.mix_kernels(many, 0)
            assert float(many[0].weight.detach().std() / std) == pytest.approx(mixed, rel=0.03)


def test_choosing_layers_and_leaving_out_the_head():
    model = pico.build("llama")
    names = {mixture.name for _, _, mixture in mixtures(ms.majority(model))}
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" not in names
    assert len(names) == 14
    only = {m.name for _, _, m in mixtures(ms.majority(model, include=r".*mlp.*", exclude=r".*layers\.0.*"))}
    assert only == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}


@pytest.mark.parametrize("name", ["ViTForImageClassification", "BertForSequenceClassification",
                                  "GPT2ForSequenceClassification", "ResNetForImageClassification"])  # fmt: skip
def test_a_classifiers_head_stays_single(name):
    import transformers

    entries = {
        "ViT": {**pico.FAMILIES["vit"][2]},
        "Bert": {**pico.BERT, "num_labels": 5},
        "GPT2": {**pico.FAMILIES["gpt2"][2], "num_labels": 5},
        "ResNet": {
            "hidden_sizes": [4, 8],
            "depths": [1, 1],
            "embedding_size": 4,
            "num_labels": 5,
            "layer_type": "basic",
        },
    }
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**next(own for start, own in entries.items() if name.startswith(start))))
    heads = {"ViT": "classifier", "Bert": "classifier", "GPT2": "score", "ResNet": "classifier.1"}
    head = next(path for start, path in heads.items() if name.startswith(start))
    names = {mixture.name for _, _, mixture in mixtures(ms.majority(model))}
    assert model.get_submodule(head).out_features == 5
    assert f"{head}.weight" not in names
    assert names


def test_a_transposed_convolution_is_mixed_by_output_unit():
    many = ms.majority(nn.Sequential(nn.ConvTranspose2d(6, 4, 3)), kernels=2)
    ms.mix_kernels(many, 0)
    weights = many[0].parametrizations.weight[0].weights
    assert weights.shape == (2, 1, 4, 1, 1)  # of (kernels, 6 in, 4 out, 3, 3)
    assert len(weights[0].unique()) == 4


def test_what_is_not_trained_stays_single():
    model = mlp()
    model[0].requires_grad_(False)
    assert {mixture.name for _, _, mixture in mixtures(ms.majority(model))} == {"2.weight"}


def test_options_are_one_object_or_names():
    options = ms.MajorityKernels(kernels=2, exclude="2")
    one, other = ms.majority(mlp(), options), ms.majority(mlp(), kernels=2, exclude="2")
    assert [m.name for _, _, m in mixtures(one)] == [m.name for _, _, m in mixtures(other)] == ["0.weight"]
    with pytest.raises(ms.MeristemError, match="did you mean 'kernels'"):
        ms.majority(mlp(), kernel=2)


def test_the_deployed_state_without_the_network():
    many = ms.majority(pico.build("vit"), kernels=3)
    state, plain = deployed_state(many.state_dict()), ms.deploy(many).state_dict()
    assert state.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in state.items())


@pytest.mark.parametrize("family", ["llama", "mixtral", "t5", "gpt2"])
def test_choosing_layers_by_the_axes_they_run_along(family):
    model = pico.build(family)
    named = lambda **options: {m.name for _, _, m in mixtures(ms.majority(model, kernels=2, **options))}  # noqa: E731
    everything, feed_forward, attention = named(), named(axes=["ffn"]), named(axes=["heads", "kv_heads"])
    assert feed_forward
    assert attention
    assert not feed_forward & attention
    assert all("attn" not in name.lower() and "attention" not in name.lower() for name in feed_forward)
    assert everything == feed_forward | attention
    assert named(axes=["ffn"], include=r".*\.0\..*") < feed_forward
    with pytest.raises(ms.MeristemError, match="did you mean 'ffn'"):
        named(axes=["fn"])


def test_axes_of_a_network_outside_transformers():
    build = lambda inner: nn.Sequential(nn.Linear(6, inner), nn.ReLU(), nn.Linear(inner, inner), nn.Linear(inner, 3))  # noqa: E731
    anatomy = ms.Anatomy.infer(build, {"inner": 8})
    many = ms.majority(build(8), axes=["inner"], anatomy=anatomy, exclude="2")
    assert {mixture.name for _, _, mixture in mixtures(many)} == {"0.weight", "3.weight"}
    assert len(list(mixtures(ms.majority(build(8), axes="inner", anatomy=anatomy)))) == 3
    with pytest.raises(ms.MeristemError, match=r"no tensor 0\.0\.weight; it is another network's"):
        ms.majority(nn.Sequential(build(8)), axes="inner", anatomy=anatomy)


def test_batch_norm_statistics_are_estimated_anew():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    many = ms.majority(net, kernels=3).train()
    batches = [torch.randn(32, 3, 8, 8) for _ in range(4)]
    for number, batch in enumerate(batches):
        ms.mix_kernels(many, number)
        many(batch)
    plain = ms.deploy(many, batches)
    with torch.no_grad():
        out = plain.eval()[0](torch.cat(batches))
    assert torch.allclose(plain[1].running_mean, out.mean((0, 2, 3)), atol=1e-4)


def test_kernels_inside_a_raptr_run():
    model = pico.build("llama", num_hidden_layers=4)
    many = ms.majority(model, kernels=2).train()
    inputs = example_inputs(model)
    schedule = ms.SubnetworkSchedule(4, 10, stages=[2])
    ms.mix_kernels(many, 3)
    with ms.subnetwork(many, schedule, 3) as paths:
        many(**inputs).logits.sum().backward()
    for layer, active in enumerate(paths["model.layers"].active):
        kernels = many.model.layers[layer].mlp.up_proj.parametrizations.weight.original
        assert (kernels.grad is not None) == active
    narrow = ms.SubnetworkSchedule(4, 10, stages=[4], widths=[0.5])
    with pytest.raises(ms.MeristemError, match="depth only"), ms.subnetwork(many, narrow, 3):
        pass


def test_compiled_networks_do_not_recompile_as_draws_change():
    from torch._dynamo.testing import CompileCounter

    many, counter = ms.majority(mlp(), kernels=3), CompileCounter()
    compiled = torch.compile(many, backend=counter)
    x = torch.randn(4, 6)
    for number in range(5):
        ms.mix_kernels(many, number)
        assert torch.allclose(compiled(x), many(x), atol=1e-6)
    assert counter.frame_count == 1


@pytest.mark.parametrize("options, words", [
    ({"kernels": 1}, "at least 2"), ({"alpha": 0}, "alpha"), ({"granularity": "row"}, "layer, unit or entry"),
    ({"epsilon": 2}, "epsilon"), ({"anneal": -1}, "anneal"), ({"start": "zero"}, "start"), ({"gain": "big"}, "gain"),
    ({"include": "nothing"}, "no linear"),
])  # fmt: skip
def test_bad_options_say_what_would_work(options, words):
    with pytest.raises(ms.MeristemError, match=words):
        ms.majority(mlp(), **options)
    with pytest.raises(ms.MeristemError, match=r"ms\.majority"):
        ms.mix_kernels(mlp(), 0)


def test_frozen_kernels_stay_frozen_in_the_deployed_network():
    many = ms.majority(pico.build("llama"))
    many.model.layers[0].requires_grad_(False)
    plain = ms.deploy(many)
    assert not any(p.requires_grad for p in plain.model.layers[0].parameters())
    assert all(p.requires_grad for p in plain.model.layers[1].parameters())


def test_a_compiled_network_is_deployed_as_its_plain_class(tmp_path):
    many = ms.majority(pico.build("llama"))
    plain = ms.deploy(torch.compile(many))
    assert type(plain) is type(pico.build("llama"))
    assert torch.equal(plain.lm_head.weight, many.lm_head.weight)


def test_a_combination_follows_the_network_to_another_dtype():
    many = ms.majority(pico.build("llama")).train()
    ms.mix_kernels(many, 3)
    exact = many.model.layers[0].mlp.up_proj.weight.detach().clone()
    assert not torch.allclose(exact, ms.deploy(many).model.layers[0].mlp.up_proj.weight)
    assert torch.allclose(
        many.bfloat16().model.layers[0].mlp.up_proj.weight.float(), exact, atol=2e-2 * float(exact.abs().max())
    )


def test_what_cannot_be_mixed_is_said():
    many = ms.majority(pico.build("llama"))
    with pytest.raises(ms.MeristemError, match="has kernels already"):
        ms.majority(many)
    with pytest.raises(ms.MeristemError, match=r"exclude='\(' is not a regular expression"):
        ms.majority(pico.build("llama"), exclude="(")
    with pytest.raises(ms.MeristemError, match="total_steps is at least 1, got 0"):
        ms.mix_kernels(many, 0, 0)
