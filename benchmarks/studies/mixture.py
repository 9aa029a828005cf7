"""Study 7: a dense network upcycled to a mixture of experts, where a mixture pays."""

from __future__ import annotations

from typing import Any

from benchmarks.studies.study import Claim, Entries, Gate, Setting, Side, Stage, Study, Tune, llama

EXPERTS, PER_TOKEN = 8, 2
BALANCE = {"load_balancing": 0.01}  # Switch Transformers, arXiv:2101.03961; OLMoE, arXiv:2409.02060
MOMENTS = (8, 20)  # the first is tuned; of a budget of 40: 20 and 50 %
UPCYCLED: dict[str, tuple[str, dict[str, Any]]] = {
    "upcycled": ("mixture", {"granularity": 2}),
    "drop_upcycled": ("mixture", {"granularity": 2, "reinit": 0.5}),
    "copies": ("copies", {}),
}


def upcycled(name: str, at: float) -> Side:
    """A dense network that becomes a mixture at this cost, with its optimizer."""
    network, options = UPCYCLED[name]
    method = {"method": "upcycle", "num_experts": EXPERTS, "experts_per_token": PER_TOKEN, "optimizer": "carry"}
    stages = [
        Stage("dense", until=at, rate="dense"),
        Stage(network, make={"grow": {**method, **options}}, train=BALANCE),
    ]
    return Side(f"{name}@{at:g}", stages, rate_of=None if at == MOMENTS[0] else f"{name}@{MOMENTS[0]:g}")


def networks(hidden_size: int, layers: int, heads: int) -> dict[str, Entries]:
    """A dense network; a mixture of halves of it, of which a token meets as many parameters as in the dense one; and a mixture of whole
    copies, in which it meets twice the feed-forward block."""
    units = 11 * hidden_size // 4 // 8 * 8  # stock mixtures want rows of whole 16 bytes, also of half an expert
    dense = {**llama(hidden_size, layers, heads), "intermediate_size": units}
    copies = {**dense, "model_type": "mixtral", "num_local_experts": EXPERTS, "num_experts_per_tok": PER_TOKEN}
    return {"dense": dense, "mixture": {**copies, "intermediate_size": units // 2}, "copies": copies}


STUDY = Study(
    name="mixture",
    title="Dense to mixture of experts",
    question="A dense network exists. Is it better to upcycle it to a mixture of experts, to train it further as it is, or to train the mixture "
    "from random numbers, at equal FLOPs with active parameters counted?",
    gate=Gate(
        "the mixture beats the dense network at equal FLOPs, both from random numbers and tuned",
        better="balanced",
        worse=("dense",),
    ),
    sides=[
        Side("balanced", [Stage("mixture", train=BALANCE)]),
        Side("scratch", [Stage("mixture")]),
        Side("dense", [Stage("dense")]),
        *(upcycled(name, MOMENTS[0]) for name in UPCYCLED),
        upcycled("upcycled", MOMENTS[1]),
    ],
    baseline="balanced",
    claims=[
        Claim("upcycled@8", "sparse upcycling, arXiv:2212.05055 and 2410.07524: ahead of dense training that goes on", versus="dense"),
        Claim("upcycled@8", "sparse upcycling, arXiv:2212.05055: ahead of the mixture from scratch, the dense network given", given=True),
        Claim("upcycled@20", "the same, from a dense network that has trained for longer", given=True),
        Claim("drop_upcycled@8", "drop-upcycling, arXiv:2502.19261: ahead of plain upcycling in the long run", versus="upcycled@8"),
        Claim("copies@8", "arXiv:2410.07524: whole copies behind fine-grained ones", versus="upcycled@8", direction="behind"),
    ],
    settings={
        "tiny": Setting(
            networks=networks(24, 2, 2), target="dense", budgets=(10, 20, 40, 80),
            tune=Tune(budget=20, seeds=(100,), rates=(4e-3, 8e-3, 16e-3), again=80),
        ),
        "small": Setting(
            networks=networks(32, 3, 2), target="dense", budgets=(10, 20, 40, 60), tune=Tune(budget=20, seeds=(100,)),
        ),
        "medium": Setting(
            networks=networks(96, 5, 4), target="dense", budgets=(10, 20, 40, 60), tune=Tune(budget=20), sequence_length=128,
        ),
    },
    limits=[
        "One kind of network, one text, bytes, 8 experts of which a token gets 2.",
        "`scratch` is the mixture without a load-balancing loss, `balanced` and all that is upcycled with one of 0.01, layer by layer.",
        "The dense side is the run that goes on: its rate is constant until the decay of each budget.",
    ],
)  # fmt: skip
