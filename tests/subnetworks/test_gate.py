"""Sub-networks of live networks: equal to networks built of just these blocks and units, for every family."""

import pico
import pytest
import torch
from torch import nn

import meristem as ms
from meristem.anatomy.inputs import example_inputs
from meristem.subnetworks import Path
from meristem.subnetworks.blocks import lists_of_blocks
from meristem.subnetworks.gate import along
from meristem.subnetworks.width import Slice, _slices

DEEP = {
    "llama": {"num_hidden_layers": 5},
    "gpt2": {"n_layer": 5},
    "gpt_neox": {"num_hidden_layers": 5},
    "qwen3": {"num_hidden_layers": 5},
    "gemma3": {"num_hidden_layers": 5},
    "bert": {"num_hidden_layers": 5},
    "t5": {"num_layers": 5, "num_decoder_layers": 5},
    "vit": {"num_hidden_layers": 5},
    "mixtral": {"num_hidden_layers": 5, "intermediate_size": 64},
}


def network(family, **changes):
    """In training mode, without dropout."""
    model = pico.build(family, **{**DEEP[family], **changes})
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize("family", DEEP)
def test_the_full_path_is_bit_identical(family):
    model = network(family)
    inputs = example_inputs(model)
    schedule = ms.SubnetworkSchedule(5, 10, stages=[3, 5])
    with ms.subnetwork(model, schedule, 9) as paths:
        assert all(all(path.active) for path in paths.values())
        assert torch.equal(logits(model, inputs), plain := logits(model, inputs))
    assert torch.equal(plain, logits(model, inputs))


@pytest.mark.parametrize("family", DEEP)
def test_a_path_is_the_network_of_its_blocks(family):
    """Skipped blocks against blocks that write nothing, all their output projections being zero."""
    model = network(family)
    inputs = example_inputs(model)
    active = (True, False, True, False, True)
    paths = {blocks.name: Path(active, (1.0,) * 5) for blocks in lists_of_blocks(model)}
    with along(model, paths):
        gated = logits(model, inputs)
    if family == "bert":  # a post-norm block that writes nothing is no identity
        kept = nn.ModuleList(block for block, on in zip(model.bert.encoder.layer, active, strict=True) if on)
        model.bert.encoder.layer = kept
        assert torch.allclose(gated, logits(model, inputs), atol=1e-6)
        return
    anatomy = ms.Anatomy.of(model)
    state = model.state_dict()
    for tensor in anatomy.tensors.values():
        if tensor.block and not active[tensor.block[1]] and tensor.writes(anatomy.stream(tensor)):
            state[tensor.name].zero_()
    assert torch.allclose(gated, logits(model, inputs), atol=1e-5)


def test_skipped_parameters_have_no_gradient_and_do_not_move():
    model = network("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    inputs = example_inputs(model)
    schedule = ms.SubnetworkSchedule(5, 100, stages=[3])
    with ms.subnetwork(model, schedule, 0) as paths:
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        layer = name.split(".")[2] if name.startswith("model.layers") else None
        runs = layer is None or paths["model.layers"].active[int(layer)]
        assert (parameter.grad is not None) == runs, name
        assert torch.equal(parameter, before[name]) != runs, name


def test_evaluation_is_of_the_full_network():
    model = network("llama")
    inputs = example_inputs(model)
    with ms.subnetwork(model, ms.SubnetworkSchedule(5, 100, stages=[2]), 0), torch.no_grad():
        small = logits(model, inputs)
        full = logits(model.eval(), inputs)
    assert torch.equal(full, logits(model, inputs))
    assert not torch.allclose(small, full, atol=1e-2)


def test_the_classes_are_restored_even_after_an_error():
    model = network("llama")
    before = [type(block) for block in model.model.layers]
    with pytest.raises(ZeroDivisionError), ms.subnetwork(model, ms.SubnetworkSchedule(5, 100, stages=[2]), 0):
        raise ZeroDivisionError
    assert [type(block) for block in model.model.layers] == before
    assert not any("_meristem_gate" in vars(block) for block in model.model.layers)


def test_scaling_multiplies_the_update_of_the_whole_block():
    model = network("llama")
    inputs = example_inputs(model)
    streams = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    for scale in (0.0, 1.0, 3.0):
        with along(model, {"model.layers": Path((True, False, False, False, True), (1.0, 1, 1, 1, scale))}):
            logits(model, inputs)
    hook.remove()
    off, once, thrice = streams
    assert torch.allclose(thrice - off, 3 * (once - off), atol=1e-5)


@pytest.mark.parametrize("family", DEEP)
def test_narrow_blocks_are_the_full_ones_with_the_other_units_unread(family):
    model = network(family)
    inputs = example_inputs(model)
    lists = lists_of_blocks(model)
    paths = {b.name: Path((True,) * 5, (1.0,) * 5, width=0.5, seed=3, step=7) for b in lists}
    with along(model, paths):
        narrow = logits(model, inputs)
    state, anatomy = dict(model.named_parameters()), lists[0].anatomy
    with torch.no_grad():
        for blocks in lists:
            for layer in range(5):
                for piece in _slices(blocks, layer, paths[blocks.name]):
                    _unread(piece, state, anatomy)
    assert torch.allclose(narrow, logits(model, inputs), atol=1e-5)


def _unread(piece: Slice, state, anatomy) -> None:
    """Zero the columns that read units which the slice leaves out."""
    name = next(n for n, p in state.items() if p is piece.parameter)
    for position, (dimension, index) in enumerate(zip(anatomy.tensors[name].dimensions, piece.indices, strict=True)):
        if dimension.role == "read" and index is not None:
            mask = torch.zeros(piece.parameter.shape[position]).index_fill_(0, index, 1.0)
            shape = [1] * piece.parameter.dim()
            shape[position] = -1
            piece.parameter.mul_(mask.view(shape))


def test_narrow_blocks_leave_the_parameters_as_they_were():
    model = network("gpt2")
    inputs = example_inputs(model)
    full = logits(model, inputs)
    before = {name: id(p) for name, p in model.named_parameters()}
    schedule = ms.SubnetworkSchedule(5, 100, stages=[5], widths=[0.5])
    with ms.subnetwork(model, schedule, 0):
        logits(model, inputs).sum().backward()
        assert {name: id(p) for name, p in model.named_parameters()} == before
        assert torch.equal(logits(model.eval(), inputs), full)  # evaluation is of the full network
        model.train()
    assert model.transformer.h[0].attn.split_size == 32
    assert torch.equal(logits(model, inputs), full)


def test_held_units_do_not_move_and_the_others_do():
    model = network("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ms.hold_unselected(optimizer, model)
    inputs = example_inputs(model)
    schedule = ms.SubnetworkSchedule(5, 100, stages=[5], widths=[0.5])
    for step in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        with ms.subnetwork(model, schedule, step) as paths:
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        (blocks,) = lists_of_blocks(model)
        pieces = _slices(blocks, 2, paths["model.layers"])
        assert pieces
        for piece in pieces:
            name = next(n for n, p in model.named_parameters() if p is piece.parameter)
            moved = piece.parameter.detach() != before[name]
            assert not bool((moved & ~piece.mask()).any())
            assert bool(moved.any())


def test_micro_batches_and_checkpointing_see_one_path():
    model = network("llama")
    inputs = example_inputs(model, batch_size=4)
    schedule = ms.SubnetworkSchedule(5, 100, stages=[3], widths=[0.5])

    def gradients(batches):
        model.zero_grad()
        with ms.subnetwork(model, schedule, 5):
            for batch in batches:
                (model(input_ids=batch).logits.square().sum() / 1000).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole = gradients([inputs["input_ids"]])
    halves = gradients(inputs["input_ids"].split(2))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    recomputed = gradients([inputs["input_ids"]])
    assert whole.keys() == halves.keys() == recomputed.keys()
    for name, gradient in whole.items():
        assert torch.allclose(gradient, halves[name], atol=1e-4), name
        assert torch.allclose(gradient, recomputed[name], atol=1e-5), name


def test_blocks_that_others_need_have_to_be_fixed():
    t5 = network("t5")
    free = ms.SubnetworkSchedule(5, 10, stages=[3], fixed_layers=(-1,))
    with pytest.raises(ms.MeristemError, match="fixed_layers"), ms.subnetwork(t5, free, 0):
        pass
    assert all(blocks.needed == {0} for blocks in lists_of_blocks(t5))
    assert not lists_of_blocks(network("gemma3"))[0].needed


def test_encoder_and_decoder_have_their_own_schedules():
    t5 = network("t5", num_decoder_layers=4)
    inputs = example_inputs(t5)
    one = ms.SubnetworkSchedule(5, 10, stages=[3])
    with pytest.raises(ms.MeristemError, match="lists of different lengths"), ms.subnetwork(t5, one, 0):
        pass
    two = {"encoder_layers": one, "decoder_layers": ms.SubnetworkSchedule(4, 10, stages=[2])}
    with ms.subnetwork(t5, two, 0) as paths:
        logits(t5, inputs).sum().backward()
    assert {name: path.depth for name, path in paths.items()} == {"encoder.block": 3, "decoder.block": 2}


def test_other_networks_bring_their_anatomy():
    class Net(nn.Module):
        def __init__(self, hidden, layers):
            super().__init__()
            self.first = nn.Linear(3, hidden)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden)) for _ in range(layers)
            )

        def forward(self, x):
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            return x

    anatomy = ms.Anatomy.infer(Net, {"hidden": 8}, {"layers": 4})
    net, x = Net(8, 4).train(), torch.randn(2, 3)
    with ms.subnetwork(net, ms.SubnetworkSchedule(4, 10, stages=[2]), 0, anatomy=anatomy) as paths:
        found = net(x)
    active = [block for block, runs in zip(net.blocks, paths["blocks"].active, strict=True) if runs]
    assert torch.equal(found, nn.Sequential(net.first, *active)(x))
    deeper = ms.SubnetworkSchedule(6, 10, stages=[2])
    with pytest.raises(ms.MeristemError, match="num_hidden_layers=6"), ms.subnetwork(net, deeper, 0, anatomy=anatomy):
        pass


def test_compiled_blocks_do_not_recompile_as_paths_change():
    from torch._dynamo.testing import CompileCounter

    model = network("llama")
    inputs = example_inputs(model)
    counter = CompileCounter()
    for block in model.model.layers:
        block.compile(backend=counter)
    schedule = ms.SubnetworkSchedule(5, 100, stages=[3], lengths=[100], full_model_steps=1, scaling="sqrt_gap")
    with ms.subnetwork(model, schedule, 0):
        logits(model, inputs).sum().backward()
    once = counter.frame_count
    for step in range(1, 9):
        with ms.subnetwork(model, schedule, step):
            logits(model, inputs).sum().backward()
    assert counter.frame_count == once


def test_frozen_blocks_run_and_are_not_trained():
    model = network("llama")
    inputs = example_inputs(model)
    schedule = ms.BottomLayers(5, 100, stride=1, until=1.0)
    step = next(s for s in range(20) if schedule.path(s, "model.layers").depth == 3)
    with ms.subnetwork(model, schedule, step):
        loss = logits(model, inputs).sum()
        loss.backward()
    trained = [any(p.grad is not None for p in block.parameters()) for block in model.model.layers]
    assert trained == [False, False, True, False, False]
    assert model.lm_head.weight.grad is not None
    assert model.model.embed_tokens.weight.grad is None
