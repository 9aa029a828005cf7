"""WSD: one stable run and decays that branch off it; checkpoints apart from evaluations; rates by role; three splits."""

from __future__ import annotations

import pytest
import torch
from small import MODEL, TRAIN, corpus
from transformers import TrainerCallback

import meristem as ms
from meristem.checkpoints import open_model
from meristem.recipes import race, run
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task
from meristem.recipes.tasks.language import causal_language_model
from meristem.recipes.training.left import load_state
from meristem.recipes.training.trainer import with_rates

STABLE = {**TRAIN, "tokens": 128 * 20, "schedule": "wsd", "decay": 0, "warmup": 0.1}


def weights(out, name):
    return open_model(str(next(out.glob(f"{name}-*/model")))).state_dict()


class Rates(TrainerCallback):
    """The learning rate of every optimizer step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append(optimizer.param_groups[0]["lr"])


def rates_of(train, tmp_path):
    rates = Rates()
    run(
        parse_recipe({"data": corpus(tmp_path), "nodes": {"one": {"train": train}}}),
        tmp_path / "rates",
        callbacks=[rates],
    )
    return [rate / train["learning_rate"] for rate in rates.seen]


def test_warm_up_stable_decay(tmp_path):
    found = rates_of({**STABLE, "decay": 0.5, "decay_shape": "linear"}, tmp_path)
    assert found == pytest.approx([0, 0.5, *[1.0] * 9, *(1 - step / 10 for step in range(1, 10))])
    found = rates_of({**STABLE, "decay": 0.2}, tmp_path)
    assert found[-4:] == pytest.approx([1, 1 - 0.25**0.5, 1 - 0.5**0.5, 1 - 0.75**0.5])
    assert rates_of(STABLE, tmp_path)[2:] == [1.0] * 18


@pytest.fixture(scope="module")
def branched(tmp_path_factory):
    """A stable run, decays of it, and what each decay is, as one run."""
    folder = tmp_path_factory.mktemp("branched")
    nodes = {
        "run": {"train": STABLE},
        "early": {"decay": {"from": "run", "at": 128 * 8, "tokens": 128 * 4, "shape": "linear", "evaluations": 2}},
        "late": {"decay": {"from": "run", "at": 128 * 20, "tokens": 128 * 5}},
        "further": {"train": {**TRAIN, "model": None, "from": "early", "tokens": 128 * 4}},
        "as_one": {"train": {**STABLE, "tokens": 128 * 12, "warmup": 2 / 12, "decay": 4 / 12, "decay_shape": "linear"}},
    }
    recipe = parse_recipe(
        {"data": corpus(folder), "nodes": nodes, "race": {"challenger": "early", "baseline": "as_one"}}
    )
    return recipe, folder / "out", run(recipe, folder / "out")


def test_a_decay_is_the_end_of_a_run_bit_for_bit(branched):
    _, out, results = branched
    one, other = weights(out, "early"), weights(out, "as_one")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert results[0]["early"].metrics == results[0]["as_one"].metrics
    one, other = (load_state(next(out.glob(f"{name}-*")) / "optimizer.safetensors") for name in ("early", "as_one"))
    assert all(torch.equal(entries["exp_avg_sq"], other[name]["exp_avg_sq"]) for name, entries in one.items())


def test_a_decay_costs_its_run_up_to_where_it_branches_off(branched):
    recipe, _, results = branched
    nodes = results[0]
    run_, early, late, as_one = (nodes[name] for name in ("run", "early", "late", "as_one"))
    assert (early.examples, late.examples, run_.examples) == (16, 20, 80)
    assert next(iter(early.taken.values()))["flops"] == run_.flops * 8 // 20
    assert next(iter(late.taken.values()))["flops"] == run_.flops
    (lap,) = race(recipe, results)
    assert lap.challenger_flops == lap.baseline_flops == as_one.flops
    assert lap.ancestors_flops == run_.flops * 8 // 20
    assert lap.challenger_loss == lap.baseline_loss


def test_a_run_after_a_decay_reads_on_where_it_stopped(branched):
    """8 steps of the run and 4 of the decay, not the run's 20."""
    from meristem.recipes.node import Job, ancestors_of

    _, out, _ = branched
    read = ancestors_of(Job.load(next(out.glob("further-*"))))
    assert sum(result.examples for result in read.values()) == 4 * (8 + 4)


def test_a_decay_that_comes_later_says_where_it_can_branch_off(branched, tmp_path):
    recipe, out, _ = branched
    content = recipe.model_dump(by_alias=True, exclude_none=True, exclude={"race"})
    content["nodes"] = {"run": content["nodes"]["run"], "new": {"decay": {"from": "run", "at": 128 * 9, "tokens": 128}}}
    with pytest.raises(ms.MeristemError, match=r"kept no checkpoint at step 9, only at \[8\]"):
        run(parse_recipe(content), out)
    content["nodes"]["new"]["decay"]["at"] = 128 * 8
    assert run(parse_recipe(content), out)[0]["new"].examples == 4


@pytest.mark.parametrize("change, decay, words", [
    ({"decay": 0.2}, {}, "whose learning rate falls by itself"), ({"schedule": "cosine", "decay": None}, {}, "falls by itself"),
    ({}, {"at": 128}, "is stable from 256 to 2,560"), ({}, {"at": 128 * 21}, "is stable from 256 to 2,560"),
    ({}, {"tokens": None, "examples": 8}, "give tokens here too"), ({"majority": {}}, {}, "trains kernels"),
    ({}, {"from": "fixed"}, "branches off a train node"),
])  # fmt: skip
def test_what_a_decay_cannot_branch_off(change, decay, words):
    nodes = {
        "run": {"train": {**STABLE, **change}},
        "fixed": {"checkpoint": {"source": "somewhere"}},
        "end": {"decay": {"from": "run", "at": 1280, "tokens": 128, **decay}},
    }
    with pytest.raises(ms.MeristemError, match=words):
        parse_recipe({"nodes": nodes})


def test_checkpoints_come_apart_from_evaluations(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    train = {**TRAIN, "tokens": 128 * 12, "evaluations": 6, "checkpoint_every": 128 * 5, "keep_every": 128 * 4}
    content = {"data": corpus(tmp_path), "nodes": {"small": {"train": train}}}
    done = run(parse_recipe(content), tmp_path, callbacks=[Look()])[0]["small"]
    assert seen == [5, 10, 12]
    assert [point["step"] for point in done.curve] == [0, 2, 4, 6, 8, 10, 12]
    (directory,) = tmp_path.glob("small-*")
    assert sorted(path.name for path in directory.glob("kept/*")) == ["4", "8"]


def test_rates_by_role():
    model = causal_language_model(MODEL, 256, 32, 0)
    groups = [{"params": list(model.parameters()), "lr": 0.1, "weight_decay": 0.01}]
    found = with_rates(groups, model, {"embed": 2.0, "mlp": 0.5, "layers.0": 9.0})
    rates = {id(p): group["lr"] for group in found for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert by_name["model.embed_tokens.weight"] == pytest.approx(0.2)
    assert by_name["model.layers.0.mlp.up_proj.weight"] == pytest.approx(0.05)
    assert by_name["model.layers.0.self_attn.q_proj.weight"] == pytest.approx(0.9)
    assert by_name["lm_head.weight"] == pytest.approx(0.1)
    assert all(group["weight_decay"] == 0.01 for group in found)
    with pytest.raises(ms.MeristemError, match="no parameter's name matches 'experts'"):
        with_rates(groups, model, {"experts": 2.0})


def test_splits_share_no_text(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text(f"document {number} of many. " * 8)
    content = {
        "data": {"source": str(tmp_path), "sequence_length": 16, "eval_sequences": 500},
        "nodes": {"a": {"train": TRAIN}},
    }
    task = open_task(parse_recipe(content).data)
    parts = [task.training_set(200 * 12, 0, 0), task.evaluation_set("tune"), task.evaluation_set("eval")]
    sources = [part.windows.array for part in parts]
    documents = [set(bytes(tokens.astype("uint8")).split(b"\0")) - {b""} for tokens in sources]
    assert all(documents)
    assert len(set.union(*documents)) == sum(map(len, documents)) == 200


class Scales(TrainerCallback):
    """The learning rates of all parameter groups in each node's first step, relative to the largest."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step == 0:
            rates = [group["lr"] for group in optimizer.param_groups]
            self.seen.append(sorted({round(rate / max(rates), 6) for rate in rates}))


def test_a_decay_and_a_later_stage_step_each_weight_as_its_growth_asks(tmp_path):
    """What a growth by two reads with half its scale steps half as far, also when a decay or another stage goes on."""
    stable = {**STABLE, "warmup": 0.0}
    go_on = {key: value for key, value in stable.items() if key != "model"} | {"scale_learning_rate": True}
    scales = Scales()
    nodes = {
        "small": {"train": stable},
        "grown": {"grow": {"from": "small", "method": "hypercloning", "width": 2, "optimizer": "carry"}},
        "run": {"train": {**go_on, "from": "grown"}},
        "ending": {"decay": {"from": "run", "at": 128 * 20, "tokens": 128 * 4}},
        "stage": {"train": {**go_on, "from": "run"}},
    }
    run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), tmp_path / "out", callbacks=[scales])
    assert scales.seen == [[1.0], [0.5, 1.0], [0.5, 1.0], [0.5, 1.0]]
