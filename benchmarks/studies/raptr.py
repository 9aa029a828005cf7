"""Study 5: RAPTR and its relatives, where depth pays."""

from __future__ import annotations

from typing import Any

from benchmarks.studies.study import Claim, Gate, Setting, Side, Stage, Study, Tune, llama, t5

CARRY = {"optimizer": "carry"}


def bert(hidden_size: int, layers: int, heads: int) -> dict[str, Any]:
    """A BERT with its norms before the layers, which trains at twelve layers without a long warm-up."""
    return {
        "model_type": "roberta-prelayernorm", "hidden_size": hidden_size, "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "pad_token_id": 0, "max_position_embeddings": 256,
    }  # fmt: skip


def sampled(name: str, **options: Any) -> Side:
    """The whole network, of which each step trains a part."""
    return Side(name, [Stage("large", train={"subnetwork": options})], whole=True)


def stacked() -> Side:
    """Gradual stacking, 6 - 9 - 12 layers, with the same schedule and decay."""
    more = {"grow": {"method": "gradual_stacking", "layers": 3, **CARRY}}
    stages = [
        Stage("half", until=0.25, rate="scratch"),
        Stage("dense_9", make=more, until=0.6, rate="scratch"),
        Stage("large", make=more),
    ]
    return Side("gradual_stacking", stages, whole=True)


def networks(kind: Any, width: int, heads: int) -> dict[str, Any]:
    """12 layers, and fewer."""
    return {name: kind(width, layers, heads) for name, layers in {"large": 12, "dense_9": 9, "half": 6}.items()}


STUDY = Study(
    name="raptr",
    title="RAPTR",
    question="Do random sub-networks whose depth rises in stages reach a deep network's loss with less compute?",
    gate=Gate("twelve layers beat nine at equal FLOPs, both tuned", better="scratch", worse=("dense_9",)),
    sides=[
        Side("scratch", [Stage("large")]),
        Side("dense_9", [Stage("dense_9")]),
        sampled("raptr", stages=[6, 8, 10, 12]),
        sampled("constant_9", stages=[9]),
        sampled("progressive_layer_dropping", kind="progressive_layer_dropping"),
        stacked(),
    ],
    claims=[
        Claim("raptr", "RAPTR, arXiv:2402.05913: an equal or lower loss with 1.2 to 1.33x fewer FLOPs"),
        Claim("constant_9", "arXiv:2402.05913: behind RAPTR"),
        Claim("progressive_layer_dropping", "arXiv:2010.13369: 24 % less time for each sample; behind RAPTR in arXiv:2402.05913"),
        Claim("gradual_stacking", "arXiv:2402.05913: behind RAPTR on UL2"),
    ],
    settings={
        "tiny": Setting(
            networks=networks(llama, 24, 2), budgets=(10, 20, 40), tune=Tune(budget=20, seeds=(100,), rates=(2e-3, 4e-3, 8e-3))
        ),
        "masked": Setting(
            networks=networks(bert, 24, 2), budgets=(10, 20, 40), task="masked-lm",
            tune=Tune(budget=20, seeds=(100,), rates=(2e-3, 4e-3, 8e-3)),
        ),
        "ul2": Setting(
            networks=networks(t5, 24, 2), budgets=(10, 20, 40), task="ul2", sequence_length=128,
            tune=Tune(budget=20, seeds=(100,), rates=(2e-3, 4e-3, 8e-3)),
        ),
        "medium": Setting(networks=networks(llama, 64, 2), budgets=(10, 20, 40), tune=Tune(budget=20), sequence_length=128),
        "large": Setting(
            networks=networks(llama, 192, 4), budgets=(5, 10, 20), tune=Tune(budget=10, seeds=(100,)), sequence_length=256,
            batch_size=64, trainer={"bf16": True},
        ),
    },
    limits=[
        "Compute is counted in FLOPs of the blocks that run; time falls by less.",
    ],
)  # fmt: skip
