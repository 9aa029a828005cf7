"""Study 6, as it was composed first: width and depth by two, and RAPTR's stages, at six layers."""

from __future__ import annotations

from typing import Any

from benchmarks.studies.study import Claim, Gate, Setting, Side, Stage, Study, Tune, llama

CARRY = {"optimizer": "carry"}
WIDER = {"grow": {"method": "zero_padding", "width": 2, **CARRY}}
DEEPER = {"grow": {"method": "stacking", "depth": 2, **CARRY}}
STAGED = {"subnetwork": {"stages": [4, 5, 6], "lengths": [1, 1, 2]}}


def recipe(name: str, *stages: Stage) -> Side:
    """Stages by shares of the budget."""
    return Side(name, list(stages), whole=True)


def networks(width: int, layers: int, heads: int) -> dict[str, Any]:
    """The target, half as wide, and half as wide and deep."""
    half = {"narrow": (width // 2, layers, heads // 2), "seed": (width // 2, layers // 2, heads // 2)}
    return {name: llama(*shape) for name, shape in {"large": (width, layers, heads), **half}.items()}


NARROW = Stage("narrow", until=0.1, rate="narrow")
SEED = Stage("seed", until=0.05, rate="seed")
STUDY = Study(
    name="best_six",
    title="The best recipe, first composition",
    question="Do the helpful methods together reach a tuned network's loss with half the compute, everything counted?",
    gate=Gate(
        "the target beats the narrow network and the narrow, shallow one at equal FLOPs, all tuned",
        better="scratch",
        worse=("narrow", "seed"),
    ),
    sides=[
        Side("scratch", [Stage("large")]),
        Side("narrow", [Stage("narrow")]),
        Side("seed", [Stage("seed")]),
        recipe("wider", NARROW, Stage("large", make=WIDER)),
        recipe("deeper_wider", SEED, Stage("narrow", make=DEEPER, until=0.2, rate="narrow"), Stage("large", make=WIDER)),
        recipe("deeper_wider_raptr", SEED, Stage("narrow", make=DEEPER, until=0.2, rate="narrow"),
               Stage("large", make=WIDER, train=STAGED)),
    ],
    claims=[
        Claim("deeper_wider_raptr", "ours: stacking, zero padding and RAPTR stages together save half", saves=0.5),
        Claim("deeper_wider", "ours: stacking and zero padding save half", saves=0.5),
        Claim("wider", "ours: zero padding at 10 % saves half", saves=0.5),
    ],
    settings={
        "tiny": Setting(
            networks=networks(32, 6, 2), budgets=(10, 20, 40), tune=Tune(budget=20, seeds=(100,), rates=(4e-3, 8e-3, 16e-3))
        ),
    },
    limits=["One kind of network, one text, bytes.", "Composed before the study of depth; `best` is what followed from it."],
)  # fmt: skip
