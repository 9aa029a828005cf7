"""Study 4: Deep Fusion, where a large network pays."""

from __future__ import annotations

from typing import Any

from benchmarks.studies.study import Claim, Gate, Setting, Side, Stage, Study, Tune, llama, t5

AT = 16  # both parents together; of a budget of 80: 20 %


def fused(name: str, members: int, options: dict[str, Any], rate_of: str | None = None, **train: Any) -> Side:
    """Two small networks, or one twice, side by side in a large one."""
    large = Stage("large", make={"fuse": {"optimizer": "carry", **options}}, train=train)
    return Side(name, [Stage("small", until=AT, rate="small", members=members), large], rate_of)


CLONED = {"grow": {"method": "hypercloning", "width": 2, "noise": 0.1, "optimizer": "carry"}}

STUDY = Study(
    name="fusion",
    title="Deep Fusion",
    question="Is a large network that is fused from two small ones better than the same network from random numbers, or grown from one of them, "
    "at equal FLOPs?",
    gate=Gate("the large network beats the small one alone at equal FLOPs, both tuned", better="scratch", worse=("small",)),
    sides=[
        Side("scratch", [Stage("large")]),
        Side("small", [Stage("small")]),
        fused("plain", 2, {}),
        fused("self", 1, {"noise": 0.1}),
        fused("grouped", 2, {"norm": "grouped"}),
        fused("equalised", 2, {"norm": "equalised"}),
        Side("hypercloning", [Stage("small", until=AT, rate="small"), Stage("large", make=CLONED)]),
        fused("grouped_warmup", 2, {"norm": "grouped"}, warmup=0.05),
        fused("grouped_diagnosed", 2, {"norm": "grouped"}, rate_of="grouped_warmup", warmup="junction"),
        Side("ensemble", [Stage("small", rate="small", members=2)], rate_of="small", whole=True),
    ],
    claims=[
        Claim("plain", "Deep Fusion, arXiv:2306.11903: standard training's quality or better, in significantly less time"),
        Claim("self", "self-fusion, arXiv:2306.11903: standard training's quality or better"),
        Claim("grouped", "ours: the exact form is better than the plain one", versus="plain"),
        Claim("equalised", "ours: norms equalised before are better than the plain form", versus="plain"),
        Claim("grouped_warmup", "dynamics: a warm-up at the junction helps", versus="grouped"),
        Claim("grouped_diagnosed", "dynamics: the warm-up of `meristem diagnose` is better than none", versus="grouped"),
        Claim("grouped_diagnosed", "dynamics: it is better than 5 % of the steps", versus="grouped_warmup"),
    ],
    settings={
        "tiny": Setting(
            networks={"large": llama(32, 3, 2), "small": llama(16, 3, 1)},
            budgets=(40, 80),
            tune=Tune(budget=40, seeds=(100,), rates=(4e-3, 8e-3, 16e-3)),
        ),
        "t5": Setting(
            networks={"large": t5(32, 2, 2), "small": t5(16, 2, 1)}, budgets=(40, 80), task="span-corruption",
            sequence_length=128, tune=Tune(budget=40, seeds=(100,), rates=(4e-3, 8e-3, 16e-3)),
        ),
        "medium": Setting(
            networks={"large": llama(96, 4, 4), "small": llama(48, 4, 2)}, budgets=(40, 80), tune=Tune(budget=40),
            sequence_length=128,
        ),
        "large": Setting(
            networks={"large": llama(192, 6, 4), "small": llama(96, 6, 2)}, budgets=(40,),
            tune=Tune(budget=40, seeds=(100,)), sequence_length=256, batch_size=64, trainer={"bf16": True},
        ),
    },
    limits=["One text, bytes."],
)  # fmt: skip
