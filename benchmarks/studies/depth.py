"""Study 2: growth in depth, where depth pays: four layers, which pay at sizes of a processor (`depth_eight` has eight)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.studies.study import Claim, Gate, Setting, Side, Stage, Study, Tune, llama

AT = 8  # of a budget of 40: 20 %
ONE_STEP: dict[str, tuple[str, dict[str, Any]]] = {
    "stacking_4x": ("quarter", {"method": "stacking", "depth": 4}),
    "stacking_2x": ("half", {"method": "stacking", "depth": 2}),
    "interpolation": ("half", {"method": "stacking", "depth": 2, "order": "interpolate"}),
    "identity_blocks": ("half", {"method": "identity_blocks", "depth": 2}),
}
CARRY = {"optimizer": "carry"}


def one_step(name: str) -> Side:
    """A shallow network that grows once."""
    parent, options = ONE_STEP[name]
    return Side(name, [Stage(parent, until=AT, rate=parent), Stage("large", make={"grow": {**options, **CARRY}})])


def by_quarters(method: str, layers: int, until: Sequence[float], make: dict[str, Any] | None = None) -> list[Stage]:
    """From a quarter of the layers on, a quarter more at each step (Saunshi et al.).

    Args:
        until: when the stages of a quarter, a half and three quarters end.
        make: how the network of a quarter comes from the stage before; by default from random numbers.
    """
    more = {"grow": {"method": method, "layers": layers // 4, **CARRY}}
    quarter, half, three_quarters = until
    return [
        Stage("quarter", make=make, until=quarter, rate="quarter"),
        Stage("half", make=more, until=half, rate="half"),
        Stage("three_quarters", make=more, until=three_quarters, rate="half"),
        Stage("large", make=more),
    ]


def networks(width: int, heads: int, layers: int) -> dict[str, Any]:
    """The target and what it grows from."""
    depths = {"large": layers, "three_quarters": 3 * layers // 4, "half": layers // 2, "quarter": layers // 4}
    return {name: llama(width, depth, heads) for name, depth in depths.items()}


def study(name: str, title: str, layers: int, settings: dict[str, Setting], limits: Sequence[str] = ()) -> Study:
    """The same question for a target of so many layers, a multiple of four."""
    return Study(
        name=name,
        title=title,
        question="How much of the compute to a deep network's loss is saved by training a shallow one first and repeating its layers?",
        gate=Gate(
            "the deep network beats those of half and of a quarter of its layers at equal FLOPs, all tuned",
            better="scratch",
            worse=("half", "quarter"),
        ),
        sides=[
            Side("scratch", [Stage("large")]),
            Side("half", [Stage("half")]),
            Side("quarter", [Stage("quarter")]),
            *map(one_step, ("stacking_4x", "stacking_2x", "identity_blocks")),
            *(Side(name, by_quarters(name, layers, (2, 5, AT))) for name in ("gradual_stacking", "midas")),
            one_step("interpolation"),
        ],
        claims=[
            Claim("stacking_4x", "G_stack by four, arXiv:2405.15319: 194 billion tokens instead of 300 at 7B (35 % saved)", saves=0.35),
            Claim("stacking_2x", "G_stack by two, arXiv:2405.15319: behind four, which is recommended", versus="stacking_4x", direction="behind"),
            Claim("gradual_stacking", "gradual stacking, arXiv:2409.19044: 1.24 to 1.39x at about the same loss", saves=0.19),
            Claim("midas", "MIDAS, arXiv:2409.19044: 1.24 to 1.39x at the same or a slightly higher loss", saves=0.19),
            Claim("interpolation", "layers repeated in place: behind stacking (arXiv:2405.15319)", versus="stacking_2x", direction="behind"),
            Claim("identity_blocks", "the function is kept: behind stacking (arXiv:2405.15319)", versus="stacking_2x", direction="behind"),
        ],
        settings=settings,
        limits=["One kind of network, one text, bytes.", "The moment of growth is fixed, one for all methods.", *limits],
    )  # fmt: skip


STUDY = study(
    "depth",
    "Growth in depth",
    4,
    settings={
        "tiny": Setting(
            networks=networks(32, 2, 4), budgets=(20, 40, 80), tune=Tune(budget=20, seeds=(100,), rates=(4e-3, 8e-3, 16e-3))
        ),
    },
    limits=[
        "The search at 20 gives half the depth a rate that leads by 0.002 nats there. In [another study](best.md), whose rates were tuned at 40, half "
        "the depth at half of that rate is level with the whole one at 40, and behind it at 80. So read the savings at 80. There half of the rate is "
        "0.002 nats better for half the depth, on the search's seed; for the other sides that is not measured.",
        "Four layers. Eight of 24 units do not pay here: four end 0.066 nats lower at 20 bytes for each parameter (the search's seed)."
    ],
)  # fmt: skip
