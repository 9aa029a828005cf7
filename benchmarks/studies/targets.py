"""Study 3: growing to the next published rung, scaled down, where the larger rung pays."""

from __future__ import annotations

from typing import Any

from benchmarks.studies.study import Claim, Gate, Setting, Side, Stage, Study, Tune, llama

AT = 8
# SmolLM2 135M -> 360M: hidden 576 -> 960, heads 9 -> 15, layers 30 -> 32; here a twenty-fourth of the width.
SHAPE = {"hidden_size": 40, "intermediate_size": 110, "num_attention_heads": 5, "num_key_value_heads": 5}
RUNG = {"small": llama(24, 4, 3), "large": llama(40, 5, 5)}


def grown(name: str, method: str | list[str], **more: Any) -> Side:
    """The smaller rung, grown to the larger one's every axis."""
    make = {"grow": {"method": method, **SHAPE, "optimizer": "carry", **more}}
    return Side(name, [Stage("small", until=AT, rate="small"), Stage("large", make=make)])


STUDY = Study(
    name="targets",
    title="Growing to a published rung",
    question="The smaller size of a family exists. Does growing it to the larger size save compute, compared with training the larger one from random numbers?",
    gate=Gate("the larger rung beats the smaller one at equal FLOPs, both tuned", better="scratch", worse=("small",)),
    sides=[
        Side("scratch", [Stage("large")]),
        Side("small", [Stage("small")]),
        grown("lemon", "lemon", num_hidden_layers=5),
        grown("zero_padding", ["zero_padding", "identity_blocks"], num_hidden_layers=5),
    ],
    claims=[
        Claim(
            "lemon",
            "LEMON, arXiv:2310.07999: 33 % (BERT) to 57 % (ViT) saved, the small network given",
            saves=0.33,
            given=True,
        ),
        Claim("zero_padding", "MSG, arXiv:2305.02869: 1.4x to 2.2x", saves=0.29),
    ],
    settings={
        "tiny": Setting(
            networks=RUNG, budgets=(10, 20, 40), tune=Tune(budget=20, seeds=(100,), rates=(4e-3, 8e-3, 16e-3))
        ),
    },
    limits=["One pair of rungs, scaled down.", "Mixtures of experts (upcycling) are not a side yet."],
)
