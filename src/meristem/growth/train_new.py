"""Train only what is new, or train it otherwise: `ms.freeze_old` and `ms.parameter_groups`.

Whole tensors are frozen by `requires_grad`, which saves their gradients; parts of tensors by a masked update (`entry_rates`). Which
is which is asked of the provenance of the growth, so it works in the same way behind every method: LLaMA-Pro is identity blocks of
which only the new ones train, *Grow, Don't Overwrite* is feed-forward units duplicated of which only the copies do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from meristem.errors import MeristemError, nearest
from meristem.growth.dtensors import as_part, local
from meristem.growth.entry_rates import forget, hold, known_rates, rates_of
from meristem.growth.fuse import Fusion
from meristem.growth.growth import Growth
from meristem.growth.origins import COPIED, FRESH
from meristem.growth.provenance import Provenance
from meristem.growth.rank_layers import LayerRank

New = Literal["fresh", "copied", "grown", "all"]
NEW: tuple[New, ...] = ("fresh", "copied", "grown", "all")


@dataclass(frozen=True)
class Frozen:
    """What `freeze_old` has done.

    Attributes:
        moving: entries that train, of `entries` in all; tied ones count once.
    """

    moving: int
    entries: int
    _held: tuple[nn.Parameter, ...] = field(repr=False)
    _frozen: tuple[nn.Parameter, ...] = field(repr=False)

    def remove(self) -> None:
        """Everything trains again that did before."""
        for parameter in self._held:
            forget(parameter)
        for parameter in self._frozen:
            parameter.requires_grad_(True)


def freeze_old(
    model: nn.Module,
    provenance: Provenance | Growth | Fusion,
    train: New = "copied",
    layers: Collection[int | LayerRank] | None = None,
) -> Frozen:
    """From now on, only what a growth has added to `model` trains. Everything else stays as it is, bit by bit, whatever optimizer steps:
    weights, moments and all; the norm by which gradients are clipped is that of what moves.

        growth = ms.Growth.of(model, ms.IdentityBlocks(depth=2))
        ms.freeze_old(growth.model, growth)
        optimizer = torch.optim.AdamW(p for p in growth.model.parameters() if p.requires_grad)

    Call it before an optimizer or DDP is made, and after `fully_shard` where the model is sharded. A copy of the model (`copy.deepcopy`)
    keeps whole tensors frozen, but knows nothing of their parts: call it on the copy.

    Args:
        model: the grown network, also inside DDP or torch.compile, or sharded by FSDP2.
        provenance: of the growth, or the growth itself; for a directory, `ms.provenance(directory)`.
        train: "fresh": entries without a source; "copied": these and further copies, all that is new; "grown": every tensor that has
            something new in it, as a whole; "all": nothing is frozen.
        layers: in these blocks only: numbers (of every list of blocks), or what `ms.rank_layers` gives. Everything else is frozen, so that a
            network whose layers have all grown learns as one would of which only these have; stock classes want all layers alike.

    Raises:
        MeristemError: for the provenance of another network, or a growth that leaves nothing to train.
    """
    provenance = _of(model, provenance)
    held, frozen, moving, entries = [], [], 0, 0
    chosen = _chosen(provenance.names, layers)
    for name, parameter, labels in _parameters(model, provenance):
        moves = _moving(labels, train)
        if name not in chosen:
            moves = torch.zeros_like(moves)
        count = int(moves.sum())
        moving, entries = moving + count, entries + labels.numel()
        if not parameter.requires_grad:
            moving -= count
        elif not count:
            parameter.requires_grad_(False)
            frozen.append(parameter)
        elif count < labels.numel():
            hold(parameter, ~moves)
            held.append(parameter)
    done = Frozen(moving, entries, tuple(held), tuple(frozen))
    if not moving:
        done.remove()
        counts = ", ".join(f"{kind} {count:,}" for kind, count in provenance.counts().items())
        raise MeristemError(
            f"train={train!r} leaves nothing to train in this network ({counts}); train='grown' or 'all' would"
        )
    return done


def parameter_groups(
    model: nn.Module,
    provenance: Provenance | Growth | Fusion,
    *,
    learning_rate: float,
    fresh_learning_rate: float | None = None,
    warm_fresh: int = 0,
    reset_fresh: bool = False,
    fresh: Literal["fresh", "copied"] = "copied",
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer in which new entries have a learning rate and a warm-up of their own.

        optimizer = torch.optim.AdamW(ms.parameter_groups(model, growth, learning_rate=1e-4, fresh_learning_rate=1e-3, warm_fresh=200))

    Groups hold whole tensors: those with old entries at `learning_rate`, those without at `fresh_learning_rate`. In a tensor with both,
    the step of new entries is scaled behind the optimizer's. (Asymmetric resetting and re-warming: SPARKLING, arXiv:2602.02472.)

    Args:
        model, provenance: as for `freeze_old`; parameters that do not train are left out.
        learning_rate, fresh_learning_rate: of old entries, and of new ones (by default the same).
        warm_fresh: over so many steps, the rate of new entries rises to its value.
        reset_fresh: the moments of new entries, as a grown optimizer has carried them, begin at zero, and count their steps from there.
        fresh: which entries are new: "copied": all that are not old; "fresh": those without a source only.

    Returns:
        Groups with `params`, `lr` and `provenance` ("old", "mixed" or "fresh"); a scheduler may change `lr`, the ratio stays.

    Raises:
        MeristemError: for rates or steps that are none, or the provenance of another network.
    """
    fresh_rate = learning_rate if fresh_learning_rate is None else fresh_learning_rate
    for name, value in (("learning_rate", learning_rate), ("fresh_learning_rate", fresh_rate)):
        if not _is_number(value) or not value > 0:
            raise MeristemError(f"{name} must be a positive number, got {value!r}")
    if not _is_number(warm_fresh) or warm_fresh < 0 or warm_fresh != int(warm_fresh):
        raise MeristemError(f"warm_fresh is a number of steps, got {warm_fresh!r}")
    if fresh not in ("fresh", "copied"):
        raise MeristemError(f"fresh is 'fresh' (entries without a source) or 'copied' (all that is new), got {fresh!r}")
    groups: dict[str, dict[str, Any]] = {}
    for _, parameter, labels in _parameters(model, _of(model, provenance)):
        if not parameter.requires_grad:
            continue
        new = _moving(labels, fresh)
        kind = "fresh" if new.all() else "mixed" if new.any() else "old"
        rate = fresh_rate if kind == "fresh" else learning_rate
        group = groups.setdefault(kind, {"params": [], "lr": rate, "provenance": kind})
        group["params"].append(parameter)
        if kind != "old":
            scale_new(parameter, new, fresh_rate / rate, int(warm_fresh), reset_fresh)
    return list(groups.values())


def scale_new(parameter: nn.Parameter, new: Tensor, ratio: float, warmup: int, reset: bool) -> None:
    """Let entries where `new` is true step `ratio` times as far as their group's learning rate says, after so many steps of warm-up."""
    rates = rates_of(parameter)
    rates.fresh = local(as_part(new.to(parameter.device), parameter))
    rates.ratio, rates.warmup, rates.reset, rates.step = ratio, warmup, reset, 0


def start_at(model: nn.Module, step: int) -> None:
    """A run that is resumed: warm-ups go on at this step, and nothing is reset."""
    for rates in known_rates(model.parameters()):
        rates.step = step


def scale_fresh(
    model: nn.Module,
    provenance: Provenance | Growth | Fusion,
    ratio: float,
    warmup: int,
    fresh: Literal["fresh", "copied"],
) -> None:
    """What `parameter_groups` does, for an optimizer that is made by others: all new entries step by a ratio and a warm-up."""
    for _, parameter, labels in _parameters(model, _of(model, provenance)):
        new = _moving(labels, fresh)
        if parameter.requires_grad and new.any():
            scale_new(parameter, new, ratio, warmup, False)


def _of(model: nn.Module, provenance: Provenance | Growth | Fusion) -> Provenance:
    found = provenance.provenance if isinstance(provenance, Growth | Fusion) else provenance
    if not isinstance(found, Provenance):
        raise MeristemError(
            f"needed is a provenance, a Growth or a Fusion; got {type(found).__name__}; ms.provenance(directory) reads one"
        )
    found.check(_inner(model))
    return found


def _chosen(names: Collection[str], layers: Collection[int | LayerRank] | None) -> set[str]:
    """The tensors that lie in these layers; all of them by default."""
    if layers is None:
        return set(names)
    if not isinstance(layers, Collection) or isinstance(layers, str):
        raise MeristemError(f"layers is a list of them, such as [{layers!r}], got {layers!r}")
    numbers: dict[int, list[str]] = {}
    for name in names:
        if (match := re.search(r"(?:^|\.)(\d+)\.", name)) is not None:
            numbers.setdefault(int(match.group(1)), []).append(name)
    found: set[str] = set()
    for layer in layers:
        if isinstance(layer, LayerRank):
            own = [name for name in names if name.startswith(f"{layer.blocks}.{layer.layer}.")]
        else:
            own = [] if isinstance(layer, bool) or not isinstance(layer, int) else numbers.get(layer, [])
        if not own:
            raise MeristemError(
                f"layers must be numbers from 0 to {max(numbers, default=-1)}, or a result of ms.rank_layers, got {layer!r}"
            )
        found.update(own)
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _inner(model: nn.Module) -> nn.Module:
    """The network itself, out of DDP and torch.compile."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model, keep_torch_compile=False)


def _parameters(model: nn.Module, provenance: Provenance) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """(name, parameter, the label of each of its entries), tied ones once."""
    for name, parameter in _inner(model).named_parameters():
        yield name, parameter, provenance.labels(name)


def _moving(labels: Tensor, train: New) -> Tensor:
    if train not in NEW:
        raise MeristemError(f"train is one of {', '.join(NEW)}, got {train!r}; {nearest(str(train), NEW)}")
    if train == "all":
        return torch.ones_like(labels, dtype=torch.bool)
    if train == "grown":
        return torch.full_like(labels, bool((labels >= COPIED).any()), dtype=torch.bool)
    return labels >= (FRESH if train == "fresh" else COPIED)
