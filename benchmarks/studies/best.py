"""Study 6: the best recipe there is, against tuned scratch, composed of what won in the study of depth. Its figure is the front page's."""

from __future__ import annotations

from typing import Any

from benchmarks.studies import depth
from benchmarks.studies.study import Claim, Gate, Setting, Side, Stage, Study, Tune, llama

LAYERS = 4
WIDER = {"grow": {"method": "zero_padding", "width": 2, **depth.CARRY}}


def gradual(name: str, *before: Stage, make: dict[str, Any] | None = None, average: int = 0) -> Side:
    """A layer more at 5, 12.5 and 20 % of the budget: the shares of the study of depth at 40."""
    stages = depth.by_quarters("gradual_stacking", LAYERS, (0.05, 0.125, 0.2), make)
    return Side(name, [*before, *stages], whole=True, average=average)


def networks(width: int, heads: int) -> dict[str, Any]:
    """Four layers, its shallower networks, and narrow ones of all layers and of one."""
    narrow = {"narrow": LAYERS, "seed": 1}
    return {
        **depth.networks(width, heads, LAYERS),
        **{name: llama(width // 2, own, heads // 2) for name, own in narrow.items()},
    }


STUDY = Study(
    name="best",
    title="The best recipe there is",
    question="Do the methods that won reach a tuned network's loss with half the compute, everything counted?",
    gate=Gate(
        "the target beats the networks of half and of a quarter of its layers and of half its width at equal FLOPs, all tuned",
        better="scratch",
        worse=("half", "quarter", "narrow"),
    ),
    sides=[
        Side("scratch", [Stage("large")]),
        Side("half", [Stage("half")]),
        Side("quarter", [Stage("quarter")]),
        Side("narrow", [Stage("narrow")]),
        gradual("gradual"),
        gradual("wider_gradual", Stage("seed", until=0.02, rate="narrow"), make=WIDER),
        gradual("gradual_averaged", average=6),
    ],
    claims=[
        Claim("gradual", "ours: gradual stacking saves half", saves=0.5),
        Claim("wider_gradual", "ours: zero padding, then gradual stacking, saves half", saves=0.5),
        Claim("gradual_averaged", "WSM, arXiv:2507.17634: the mean of checkpoints is ahead of a decay", versus="gradual"),
    ],
    settings={
        "tiny": Setting(
            networks=networks(32, 2), budgets=(40, 80), seeds=(3, 4, 5),
            tune=Tune(budget=40, seeds=(101,), rates=(4e-3, 8e-3)),
        ),
        "code": Setting(
            networks=networks(32, 2), budgets=(40, 80), seeds=(3, 4, 5), data="python-stdlib", sides=("gradual",),
            tune=Tune(budget=40, seeds=(101,), rates=(4e-3, 8e-3)),
        ),
        "large": Setting(
            networks=networks(256, 4), budgets=(5, 10, 20), tune=Tune(budget=5, seeds=(100,)), sequence_length=256,
            batch_size=64, trainer={"bf16": True},
        ),
    },
    limits=[
        "One kind of network, bytes. The setting `code` is the second text: the library sources of Python, which every machine has.",
        "The rates are tuned at 40. At 80, on books and the search's seed, half of the rate is 0.014 nats worse for `scratch`, and level for "
        "`gradual`; for the other sides that is not measured.",
        "The methods were chosen by the study of depth, whose seeds are others.",
    ],
)  # fmt: skip
