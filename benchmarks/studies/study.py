"""What a study is: a question, a gate, sides that are recipe nodes, and one protocol for all of them.

The unit of cost, "bytes for each parameter": the FLOPs in which the target network, trained from random numbers, reads as many tokens as it has
parameters. A budget of 20 is the same number of FLOPs for every side, parents included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Entries = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One network that trains for a while.

    Args:
        network: which of the setting's networks it is.
        make: how it comes from the stage before: `{"grow": {...}}` or `{"fuse": {...}}`, as in a recipe, without `from`; by default from
            random numbers.
        until: total cost at which it ends, of a `whole` side the share of the budget; by default the run's end.
        rate: the side by whose tuned learning rate it trains; by default the side's own.
        members: so many networks of this kind, each from its own random numbers, which share the cost; as a last stage, their mean is read.
        train: further options of the recipe's train node; `warmup: junction` is the warm-up that `meristem diagnose` proposes.
    """

    network: str
    make: Entries | None = None
    until: float | None = None
    rate: str | None = None
    members: int = 1
    train: Entries = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One way to spend a budget: stages, of which the last ends in a decay.

    Args:
        rate_of: the side whose search for a learning rate serves this one too, where both are one method at different moments.
        whole: each budget is a run of its own with its decay in it (`schedule: wsd`), for methods whose schedule knows the run's length:
            otherwise one stable run serves all budgets, and a decay branches off for each.
        average: of a `whole` side, so many checkpoints of the last share of the budget, whose mean is read in place of a decay (`average`).
    """

    name: str
    stages: Sequence[Stage]
    rate_of: str | None = None
    whole: bool = False
    average: int = 0

    @property
    def has_parents(self) -> bool:
        """Whether the last network comes from others, whose cost counts."""
        return len(self.stages) > 1

    @property
    def least(self) -> float:
        """The cost at which the last stage begins; 0 where that is a share of the budget."""
        if self.whole:
            return 0.0
        return max((stage.until for stage in self.stages[:-1] if stage.until is not None), default=0.0)


@dataclass(frozen=True)
class Tune:
    """The search for a learning rate, the same for every side: these rates, then on by factors of two at either edge.

    Args:
        again: a longer budget, at which the rate that was found is held against its half, and so on down while the half is better: a longer
            run may want a lower rate. A stage that names a side in `rate` keeps that side's first rate.
    """

    budget: float
    rates: Sequence[float] = (2e-3, 4e-3, 8e-3)
    seeds: Sequence[int] = (100, 101)
    again: float | None = None


@dataclass(frozen=True)
class Gate:
    """The condition under which the claim can be tested: `better` has a lower loss than each of `worse` at equal FLOPs, all tuned."""

    says: str
    better: str
    worse: Sequence[str]


@dataclass(frozen=True)
class Setting:
    """The size at which a study runs.

    Args:
        networks: config entries by name.
        target: the network whose parameters and FLOPs are the unit of cost.
        budgets: costs at which decayed networks are read.
        data: a text of ../shared/data or a source of the recipes.
        sides: those that run at this size, the gate's own beside them; all by default.
        decay: the last share of each budget.
        warmup: optimizer steps, of networks from random numbers and of those that begin with a new optimizer.
    """

    networks: Mapping[str, Entries]
    budgets: Sequence[float]
    tune: Tune
    target: str = "large"
    seeds: Sequence[int] = (0, 1, 2)
    data: str = "classic_books_train"
    task: str = "causal-lm"
    sequence_length: int = 64
    eval_sequences: int = 1024
    batch_size: int = 16
    warmup: int = 40
    decay: float = 0.2
    trainer: Entries = field(default_factory=dict)
    sides: Sequence[str] = ()


@dataclass(frozen=True)
class Claim:
    """What a paper says of a side, for the table.

    Args:
        versus: the side that it is held against; the study's baseline by default.
        direction: whether the side is said to be ahead of that one, behind it, or as good.
        saves: the least share of the compute that is said to be saved; None where the claim is of the loss alone.
        given: the parents' cost does not count in the claim: they are there already.
    """

    side: str
    says: str
    versus: str | None = None
    direction: Literal["ahead", "behind", "equal"] = "ahead"
    saves: float | None = None
    given: bool = False


@dataclass(frozen=True)
class Study:
    """A question with its gate, sides and protocol. `sides` come in the order in which they run; `baseline` is what they are held against."""

    name: str
    title: str
    question: str
    gate: Gate
    sides: Sequence[Side]
    settings: Mapping[str, Setting]
    claims: Sequence[Claim] = ()
    baseline: str = "scratch"
    limits: Sequence[str] = ()

    def searched(self, side: Side) -> Side:
        """The side whose search gives this one its rate."""
        return self.searched(self.side(side.rate_of)) if side.rate_of else side

    def sides_of(self, setting: Setting) -> list[Side]:
        """Those that run at this setting."""
        wanted = {self.baseline, self.gate.better, *self.gate.worse, *setting.sides}
        return [side for side in self.sides if not setting.sides or side.name in wanted]

    def claims_of(self, setting: Setting) -> list[Claim]:
        """Those of sides that run at this setting."""
        names = {side.name for side in self.sides_of(setting)}
        return [claim for claim in self.claims if {claim.side, claim.versus or self.baseline} <= names]

    def side(self, name: str) -> Side:
        return next(side for side in self.sides if side.name == name)


DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers")  # what configs call their numbers of layers


def layers_of(entries: Entries) -> int:
    """Layers of a network, or of its encoder."""
    return next(entries[key] for key in DEPTHS if key in entries)


def deeper(entries: Entries) -> Entries:
    """The same with one layer more in each list of layers, of the last one's type where layers have types."""
    types = {key: [*entries[key], entries[key][-1]] for key in ("layer_types",) if key in entries}
    return {**entries, **types, **{key: entries[key] + 1 for key in DEPTHS if key in entries}}


def llama(hidden_size: int, layers: int, heads: int) -> dict[str, Any]:
    """A small llama whose heads each have their own keys."""
    return {
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": 11 * hidden_size // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }


def t5(d_model: int, layers: int, heads: int) -> dict[str, Any]:
    """A small T5 without dropout, as many layers in its encoder as in its decoder."""
    return {
        "model_type": "t5",
        "d_model": d_model,
        "d_kv": d_model // heads,
        "num_heads": heads,
        "d_ff": 2 * d_model,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "dropout_rate": 0.0,
    }
