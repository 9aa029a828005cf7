"""How the state of each optimizer grows, and how its steps follow the scale of grown weights: one row for
each family.

A growth multiplies the entries of a tensor by a and those of its gradient by b (`Amplitude`). An optimizer
follows the trajectory of the small network if its step is multiplied by a too. The table shows what that
means for the learning rate, eps and the weight decay. It depends on how the optimizer treats the size of
gradients:

| steps | learning rate | eps | decoupled decay | decay added to the gradient (L2) |
|---|---|---|---|---|
| proportional to gradients (SGD) | a / b | | | b / a |
| independent of the size of gradients (Adam and relatives) | a | b | 1 / a | b / a |
| by the sign of gradients (Lion) | a | | 1 / a | |
| proportional to the weights (Adafactor) | 1 | | 1 | |
| an orthogonal matrix (Muon) | a times the effect of copies (`_muon`) | | 1 / that | |

The derivation is in `docs/theory.md`, section 3. For Adam and uniform copies this is the muP rule of hidden
matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any, Literal, NamedTuple

from torch.optim import Optimizer

from meristem.errors import MeristemError
from meristem.growth.optimizers.block_steps import MISSED

Entry = Literal[
    "gradient",  # an average of gradients
    "second_moment",  # of their squares
    "magnitude",  # of their absolute values
    "direction",  # of steps that do not depend on the gradients' size
    "displacement",  # of steps as they are made, learning rate included
    "weights",  # a second set of weights
    "row",  # an average of squares over the last dimension
    "column",  # over the one before it
    "scalar",  # a number for the whole tensor: kept
]


class Amplitude(NamedTuple):
    """The factors by which a growth multiplies the entries of a tensor (a) and of its gradient (b), and the
    effect of its copies on an orthogonal step.

    `spread` is the factor by which the singular values of the gradient grow beyond b: the square root of the
    number of copies.
    """

    weight: float = 1.0
    gradient: float = 1.0
    spread: float = 1.0
    old_shape: tuple[int, ...] = ()
    new_shape: tuple[int, ...] = ()


WITHOUT_THE_DIMENSION = ("exp_avg_sq_row", "exp_avg_sq_col")  # transformers leaves out what torch keeps with size 1
Group = Mapping[str, Any]
Changes = dict[str, float]  # {hyperparameter: factor}


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: the name of the class.
        entries: how each entry of the state grows.
        changes: the factors of a parameter group for an amplitude. None if no factors are enough.
        counts: whether it is an Adam whose bias corrections can be counted for blocks of a tensor
            (`block_steps`).
        fills: untrained entries start with the mean second moment of the others, because the optimizer counts
            steps for whole tensors and nothing corrects that (a first step would be 3 to 30 learning rates
            long).
        exact: "" if the grown optimizer follows the trajectory of the small one. Otherwise what is
            approximate about it.
    """

    name: str
    entries: Mapping[str, Entry]
    changes: Callable[[Group, Amplitude], Changes] | None
    counts: bool = False
    fills: bool = False
    exact: str = field(default="")

    def takes(self, entries: Iterable[str]) -> bool:
        """Whether a state with these entries belongs to this optimizer, so that it can continue from it."""
        names = set(entries) - {MISSED}
        if self.changes is None or not names:  # an unknown optimizer; one that keeps nothing
            return True
        return set(NEEDED.get(self.name, ())) <= names <= set(self.entries)

    def initial(self, key: str, value: float) -> float:
        """The value of a number for the whole tensor before its first step. `value` if it does not count
        steps.
        """
        return {"step": 0.0, "mu_product": 1.0}.get(key, value)

    def shape_of(self, key: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of an entry for a parameter of this shape."""
        kind, shape = self.entries.get(key), tuple(shape)
        if kind == "scalar":
            return ()
        if kind == "row":
            return shape[:-1] if key in WITHOUT_THE_DIMENSION else (*shape[:-1], 1)
        if kind == "column":
            kept = (shape[-1],) if key in WITHOUT_THE_DIMENSION else (1, shape[-1])
            return (*shape[:-2], *kept)
        return shape


def _proportional(group: Group, amplitude: Amplitude) -> Changes:
    a, b = amplitude[:2]
    return {"lr": a / b, "weight_decay": b / a}


def _adaptive(group: Group, amplitude: Amplitude) -> Changes:
    a, b = amplitude[:2]
    return {"lr": a, "eps": b, "weight_decay": 1 / a if group.get("decoupled_weight_decay") else b / a}


def _decoupled(group: Group, amplitude: Amplitude) -> Changes:
    a, b = amplitude[:2]
    return {"lr": a, "eps": b, "weight_decay": 1 / a}


def _schedule_free(changes: Callable[[Group, Amplitude], Changes]) -> Callable[[Group, Amplitude], Changes]:
    """The sums over past learning rates, which weight the average of the iterates, are rescaled too."""

    def of(group: Group, amplitude: Amplitude) -> Changes:
        found = changes(group, amplitude)
        rate = found["lr"]
        return {**found, "lr_max": rate, "weight_sum": rate ** group.get("weight_lr_power", 2.0)}

    return of


def _by_sign(group: Group, amplitude: Amplitude) -> Changes:
    return {"lr": amplitude.weight, "weight_decay": 1 / amplitude.weight}


def _relative(group: Group, amplitude: Amplitude) -> Changes:
    """The steps of Adafactor are a share of the root mean square of the weights, unless its option says
    otherwise.
    """
    return {} if group.get("scale_parameter", True) else _by_sign(group, amplitude)


def _muon(group: Group, amplitude: Amplitude) -> Changes:
    """With n copies of its rows and m of its columns, the orthogonal step of a matrix has entries 1 / sqrt(n
    m) times as large. Muon's own adjustment to the shape changes too.
    """
    adjustment = _muon_adjustment(group, amplitude.old_shape) / _muon_adjustment(group, amplitude.new_shape)
    factor = amplitude.weight * amplitude.spread * adjustment
    return {"lr": factor, "weight_decay": 1 / factor}


def _muon_adjustment(group: Group, shape: tuple[int, ...]) -> float:
    if len(shape) < 2:
        return 1.0
    rows, columns = shape[0], prod(shape[1:])
    if group.get("adjust_lr_fn") == "match_rms_adamw":
        return 0.2 * sqrt(max(rows, columns))
    return sqrt(max(1, rows / columns))


ADAM: Mapping[str, Entry] = {
    "step": "scalar",
    "exp_avg": "gradient",
    "exp_avg_sq": "second_moment",
    "max_exp_avg_sq": "second_moment",
}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("Adam", ADAM, _adaptive, counts=True),
        Family("AdamW", ADAM, _decoupled, counts=True),
        Family("SGD", {"momentum_buffer": "gradient"}, _proportional),
        Family("Adamax", {**ADAM, "exp_inf": "magnitude"}, _adaptive),
        Family("NAdam", {**ADAM, "mu_product": "scalar"}, _adaptive, fills=True),
        Family(
            "RAdam",
            ADAM,
            _adaptive,
            fills=True,
            exact="its first five steps, which are not rectified, are proportional to gradients",
        ),
        Family(
            "RMSprop",
            {"step": "scalar", "square_avg": "second_moment", "momentum_buffer": "direction", "grad_avg": "gradient"},
            _adaptive,
        ),
        Family("Adagrad", {"step": "scalar", "sum": "second_moment"}, _adaptive),
        Family("Lion", {"step": "scalar", "exp_avg": "gradient"}, _by_sign),
        Family("Muon", {"momentum_buffer": "gradient"}, _muon, exact="Newton-Schulz iterations run in bfloat16"),
        Family(
            "Adafactor",
            {
                **{"step": "scalar", "RMS": "scalar", "exp_avg": "displacement"},
                **{"row_var": "row", "col_var": "column", "variance": "second_moment"},  # torch
                **{"exp_avg_sq_row": "row", "exp_avg_sq_col": "column", "exp_avg_sq": "second_moment"},  # transformers
            },
            _relative,
            exact="noise between copies, and uneven copies, change the averages over rows and columns",
        ),
        Family(
            "AdamWScheduleFree", {"z": "weights", "exp_avg_sq": "second_moment"}, _schedule_free(_decoupled), fills=True
        ),
        Family("SGDScheduleFree", {"z": "weights"}, _schedule_free(_proportional)),
    )
}
NEEDED = {  # entries that an optimizer cannot make a step without, once it has a state
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam"), ("exp_avg", "exp_avg_sq")),
    **{"Adamax": ("exp_avg", "exp_inf"), "RMSprop": ("square_avg",), "Adagrad": ("sum",), "Lion": ("exp_avg",)},
    **{"AdamWScheduleFree": ("z", "exp_avg_sq"), "SGDScheduleFree": ("z",), "Adafactor": ("step",)},
}
FOR_KNOWN_ENTRIES = Family("an unknown optimizer", {**ADAM, "momentum_buffer": "gradient"}, None)
QUANTISED = ("state1", "qmap1", "absmax1")


def family_of(optimizer: Optimizer) -> Family:
    """The row of an optimizer, by the name of its class or of the nearest class from which it is derived.

    Raises:
        MeristemError: for 8-bit optimizers, whose state has no entries that could be mapped.
    """
    for ancestor in type(optimizer).__mro__:
        if ancestor.__name__.lower().endswith("8bit"):
            raise _quantised(ancestor.__name__)
        if ancestor.__name__ in FAMILIES:
            return FAMILIES[ancestor.__name__]
    return FOR_KNOWN_ENTRIES


def family_by_entries(entries: Iterable[str]) -> Family:
    """The row of an optimizer of which only the state is known, as in a checkpoint: the first that has all
    its entries.

    Raises:
        MeristemError: if none has them. The message names an unknown entry.
    """
    names = set(entries)
    if names & set(QUANTISED):
        raise _quantised("this optimizer")
    for family in FAMILIES.values():
        if names <= set(family.entries):
            return family
    raise unknown_entry(names - {key for family in FAMILIES.values() for key in family.entries} or names, None)


def stored_family(state: Mapping[str, Mapping[str, Any]]) -> Family:
    """The row of an optimizer whose state is read from a checkpoint, by the name of the parameter.

    Raises:
        MeristemError: if the state cannot grow, or cannot grow without its weights.
    """
    family = family_by_entries({key for entries in state.values() for key in entries} - {MISSED})
    if "weights" in family.entries.values():
        raise MeristemError(
            "a schedule-free optimizer keeps a second set of weights, which only a live optimizer can grow "
            "(ms.Growth.grow_optimizer); grow the weights alone, from a copy without the optimizer's files"
        )
    return family


def unknown_entry(names: Iterable[str], family: Family | None) -> MeristemError:
    """The error about state that no rule covers."""
    of = f" of {family.name}" if family else ""
    return MeristemError(
        f"optimizer state {min(names)!r}{of} cannot be grown; optimizers whose state can: {', '.join(FAMILIES)}. "
        "Grow the weights alone, and start the optimizer with a new state"
    )


def _quantised(name: str) -> MeristemError:
    return MeristemError(
        f"{name} keeps its state in 8 bits, which cannot be grown; grow the weights alone, or train the last steps before the "
        "growth with its 32-bit form"
    )
