"""Progress on stderr: the blocks that a proof has run, of all that it will run."""

from __future__ import annotations

import pico
import pytest
from command_line import here

import meristem as ms
from meristem.block_count import count_blocks
from meristem.checkpoints import open_streamed
from meristem.cli import progress


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    pico.build("llama", num_hidden_layers=3).save_pretrained(path)
    return path


def test_a_proof_counts_every_block_of_every_pass(small):
    """Two networks of three blocks, in float64 and as they are stored: twelve blocks, each counted once and in order."""
    model, told = open_streamed(str(small)), []
    with count_blocks(lambda done, total: told.append((done, total))):
        certificate = ms.Growth.of(model, ms.HyperCloning(width=2)).certificate
    assert certificate.dtype == "float64"
    assert [entry for entry in told if entry[0]] == [
        (done, 12) for done in range(1, 13)
    ]  # known from the first block on


def test_a_deeper_network_adds_its_own_blocks(small):
    """IdentityBlocks to five: 2 x (3 + 5), after a pass that runs each of three blocks twice."""
    told = []
    with count_blocks(lambda done, total: told.append((done, total))):
        ms.Growth.of(open_streamed(str(small)), ms.IdentityBlocks(num_hidden_layers=5))
    assert told[-1] == (22, 22)


def test_a_sampled_proof_counts_the_blocks_that_run(small):
    told = []
    with count_blocks(lambda done, total: told.append((done, total))):
        ms.Growth.of(open_streamed(str(small)), ms.HyperCloning(width=2), sample=2)
    assert told[-1] == (8, 8)


def test_nothing_is_counted_outside(small):
    told = []
    with count_blocks(lambda done, total: told.append(done)):
        pass
    ms.Growth.of(open_streamed(str(small)), ms.HyperCloning(width=2))
    assert told == []


def test_a_long_step_says_where_it_is(capsys, monkeypatch):
    from meristem.block_count import block_reached, expect_blocks

    monkeypatch.setattr(progress, "LONG", 0.05)
    monkeypatch.setattr(progress, "OFTEN", 0.05)
    with progress.step("proving"):
        expect_blocks(4)
        block_reached()
        progress.threading.Event().wait(0.3)
    said = capsys.readouterr().err.splitlines()
    assert len(said) >= 2
    assert said[-1] == "meristem: proving: 1 of 4 blocks proved"


def test_a_short_step_says_nothing_and_quiet_nothing_at_all(small, tmp_path, capsys, monkeypatch):
    with progress.step("proving"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LONG", 0.0)
    assert here("grow", small, tmp_path / "big", "--width", 2, "--quiet") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_learn_says_what_it_does_and_draws_no_bar_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LONG", 0.0)
    few = ("--option", "structure_iter=2", "--option", "max_epochs=2")
    assert here("learn", "energynet", "iris", tmp_path / "out", *few) == 0
    said = capsys.readouterr().err
    assert "meristem: learning by energynet\n" in said
    assert "layer 1:" in said
    assert "it/s" not in said
    assert "\r" not in said


def test_diagnose_says_what_it_measures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LONG", 0.0)
    train = "tokens: 256, batch_size: 2, learning_rate: 1e-3"
    (tmp_path / "r.yaml").write_text(
        "data: {source: python-stdlib, sequence_length: 32}\n"
        f"nodes:\n  a: {{train: {{model: {{model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2}}, {train}}}}}\n"
        "  b: {grow: {from: a, method: hypercloning, width: 2}}\n"
    )
    assert here("diagnose", tmp_path / "r.yaml", "b", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "meristem: loading torch and transformers\n" in said
    assert "meristem: measuring the junction at b, seed 0\n" in said
