"""Study 1: growth in width, where a large network pays."""

from __future__ import annotations

from typing import Any

from benchmarks.studies.study import Claim, Gate, Setting, Side, Stage, Study, Tune, llama

CARRIED: dict[str, dict[str, Any]] = {
    "zero_padding": {"method": "zero_padding", "width": 2, "optimizer": "carry"},
    "hypercloning": {"method": "hypercloning", "width": 2, "noise": 0.1, "optimizer": "carry"},
    "lemon": {"method": "lemon", "width": 2, "optimizer": "carry"},
    "shrink_perturb": {"method": "shrink_zero_pad_perturb", "width": 2},
    "ligo": {"method": "ligo", "width": 2, "steps": 60, "learning_rate": 3e-4, "noise": 0.1},
}
SCALED = {"scale_learning_rate": True}  # each weight steps as its growth asks (see `growth.optimizer.amplitudes`)
MOMENTS = (8, 4, 16)  # the first is tuned; of a budget of 40: 20, 10 and 40 %


def grown(name: str, at: float) -> Side:
    """A small network that grows at this cost."""
    stages = [Stage("small", until=at, rate="small"), Stage("large", make={"grow": CARRIED[name]})]
    return Side(f"{name}@{at:g}", stages, rate_of=None if at == MOMENTS[0] else f"{name}@{MOMENTS[0]:g}")


STUDY = Study(
    name="growth",
    title="Growth in width",
    question="How much of the compute to a large network's loss is saved by training a network of half its width first, and how does the "
    "saving change with the length of training?",
    gate=Gate(
        "the large network beats the small one alone at equal FLOPs, both tuned", better="scratch", worse=("small",)
    ),
    sides=[
        Side("scratch", [Stage("large")]),
        Side("small", [Stage("small")]),
        *(grown(name, at) for at in MOMENTS for name in CARRIED),
        Side(
            "hypercloning_scaled@8",
            [
                Stage("small", until=8, rate="small"),
                Stage("large", make={"grow": CARRIED["hypercloning"]}, train=SCALED),
            ],
        ),
    ],
    claims=[
        Claim("zero_padding@8", "MSG, arXiv:2305.02869: 1.4x (GPT-2) to 2.2x (BERT-large)", saves=0.29),
        Claim(
            "hypercloning@8",
            "HyperCloning, arXiv:2409.12903: 2.2 to 4x, the small network given",
            saves=0.55,
            given=True,
        ),
        Claim("zero_padding@4", "MSG, arXiv:2305.02869, grown earlier: 1.4x (GPT-2) to 2.2x (BERT-large)", saves=0.29),
        Claim(
            "shrink_perturb@4",
            "arXiv:2605.13405, grown earlier: largest below 20 tokens per parameter, shrinking beyond",
        ),
        Claim(
            "lemon@8",
            "LEMON, arXiv:2310.07999: 33 % (BERT) to 57 % (ViT) saved, the small network given",
            saves=0.33,
            given=True,
        ),
        Claim(
            "shrink_perturb@8",
            "arXiv:2605.13405: as good as elaborate operators at a factor of two",
            versus="hypercloning@8",
            direction="equal",
        ),
        Claim(
            "ligo@8",
            "LiGO, arXiv:2303.00980: about 45 % of BERT's FLOPs saved, the small network given",
            saves=0.45,
            given=True,
        ),
    ],
    settings={
        "tiny": Setting(
            networks={"large": llama(32, 3, 2), "small": llama(16, 3, 1)},
            budgets=(10, 20, 40, 60),
            tune=Tune(budget=20, seeds=(100,), rates=(4e-3, 8e-3, 16e-3)),
        ),
        "small": Setting(
            networks={"large": llama(48, 4, 4), "small": llama(24, 4, 2)},
            budgets=(10, 20, 40, 60),
            tune=Tune(budget=20, seeds=(100,)),
        ),
        "medium": Setting(
            networks={"large": llama(96, 5, 4), "small": llama(48, 5, 2)},
            budgets=(5, 10, 20, 40, 60),
            tune=Tune(budget=20),
            sequence_length=128,
        ),
        "large": Setting(
            networks={"large": llama(256, 4, 4), "small": llama(128, 4, 2)},
            budgets=(12, 20),
            tune=Tune(budget=12, seeds=(100,)),
            sequence_length=256,
            batch_size=256,
            trainer={"bf16": True},
            sides=("zero_padding@8", "zero_padding@4", "hypercloning@8"),
        ),
    },
    limits=[
        "One kind of network, one text, bytes.",
        "Growth at a fixed cost: the moment is another share of each budget.",
        "At a whole ratio LEMON is HyperCloning with the same noise: `lemon` is the same measurement once more, not a second one. Where the two differ, "
        "only the order of additions does, and its effect grows to 0.006 nats.",
        "`zero_padding` is MSG's starting point, without its later stages. `shrink_perturb` and `ligo` begin with a new optimizer and a warm-up, the others "
        "with the grown one and none.",
    ],
)
