"""Train only what is new, or train it with other rates: `ms.freeze_old` and `ms.parameter_groups`.

Whole tensors are frozen by `requires_grad`, which saves their gradients. Parts of tensors are frozen by a
masked update (`entry_rates`). The provenance of the growth says which entries are new, so this works in the
same way after every method. In LLaMA-Pro the new entries are those of identity blocks. In *Grow, Don't
Overwrite* they are the copies of feed-forward units.
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
from meristem.growth.fusion.fusion import Fusion
from meristem.growth.growth import Growth
from meristem.growth.optimizers.entry_rates import forget, hold, known_rates, rates_of
from meristem.growth.plans.origins import COPIED, FRESH
from meristem.growth.provenance import Provenance
from meristem.growth.rank_layers import LayerRank
from meristem.growth.tensors.dtensors import as_part, local

New = Literal["fresh", "copied", "grown", "all"]
NEW: tuple[New, ...] = ("fresh", "copied", "grown", "all")


@dataclass(frozen=True)
class Frozen:
    """The result of `ms.freeze_old`.

    Attributes:
        moving: how many entries train. Tied entries count once.
        entries: how many entries there are.
    """

    moving: int
    entries: int
    _held: tuple[nn.Parameter, ...] = field(repr=False)
    _frozen: tuple[nn.Parameter, ...] = field(repr=False)

    def remove(self) -> None:
        """End the freeze. Everything that trained before trains again."""
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
    """Train only what a growth has added to `model`.

    Everything else stays as it is, bit for bit, with any optimizer: weights and moments. The norm for
    gradient clipping includes only the entries that train.

        growth = ms.Growth.of(model, ms.IdentityBlocks(depth=2))
        ms.freeze_old(growth.model, growth)
        optimizer = torch.optim.AdamW(p for p in growth.model.parameters() if p.requires_grad)

    Call it before the optimizer and DDP are made. If the model is sharded, call it after `fully_shard`. A
    copy of the model (`copy.deepcopy`) keeps frozen tensors frozen, but loses the freeze of parts of tensors.
    Call the function on the copy too.

    Args:
        model: the grown network, also inside DDP or torch.compile, or sharded by FSDP2.
        provenance: the growth or the fusion that made the model, or its provenance.
            `ms.provenance(directory)` reads that of a directory.
        train: which entries train. "fresh": entries without a source. "copied": these and further copies,
            which is all that is new. "grown": whole tensors that contain something new. "all": nothing is
            frozen.
        layers: train in these blocks only: their numbers (in every list of blocks), or results of
            `ms.rank_layers`. Everything else is frozen. The network then learns as one in which only these
            layers have grown. Stock classes need layers of one size, so all of them grow.

    Returns:
        The number of entries that train and of all entries, and `remove()` to end the freeze.

    Raises:
        MeristemError: if the provenance is that of another network, if an option is unknown, if a layer does
            not exist, or if nothing would train.
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
    """Parameter groups for an optimizer, with a learning rate and a warm-up of their own for new entries.

        groups = ms.parameter_groups(
            model, growth, learning_rate=1e-4, fresh_learning_rate=1e-3, warm_fresh=200
        )
        optimizer = torch.optim.AdamW(groups)

    Groups hold whole tensors. Tensors with old entries have `learning_rate`, and tensors without have
    `fresh_learning_rate`. In a tensor with both, the step of new entries is scaled after the step of the
    optimizer. Asymmetric resetting and re-warming come from SPARKLING, arXiv:2602.02472.

    Args:
        model: the grown network, as for `ms.freeze_old`. Parameters that do not train are left out.
        provenance: the growth, the fusion or its provenance, as for `ms.freeze_old`.
        learning_rate: the learning rate of old entries.
        fresh_learning_rate: the learning rate of new entries. By default `learning_rate`.
        warm_fresh: the number of steps over which the rate of new entries rises to its value.
        reset_fresh: set the moments of new entries, which a grown optimizer has carried over, to zero, and
            count their steps from there.
        fresh: which entries are new. "copied": all that are not old. "fresh": only those without a source.

    Returns:
        Groups with `params`, `lr` and `provenance` ("old", "mixed" or "fresh"). A scheduler may change `lr`,
        and the ratio stays.

    Raises:
        MeristemError: if a rate is not a positive number, if `warm_fresh` is not a number of steps, or if the
            provenance is that of another network.
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
    """Multiply the step of the entries where `new` is true by `ratio`, after a warm-up of `warmup` steps."""
    rates = rates_of(parameter)
    rates.fresh = local(as_part(new.to(parameter.device), parameter))
    rates.ratio, rates.warmup, rates.reset, rates.step = ratio, warmup, reset, 0


def start_at(model: nn.Module, step: int) -> None:
    """Continue warm-ups at this step in a resumed run, without a reset of moments."""
    for rates in known_rates(model.parameters()):
        rates.step = step


def scale_fresh(
    model: nn.Module,
    provenance: Provenance | Growth | Fusion,
    ratio: float,
    warmup: int,
    fresh: Literal["fresh", "copied"],
) -> None:
    """As `parameter_groups`, for an optimizer that something else makes: all new entries get a ratio and a
    warm-up.
    """
    for _, parameter, labels in _parameters(model, _of(model, provenance)):
        new = _moving(labels, fresh)
        if parameter.requires_grad and new.any():
            scale_new(parameter, new, ratio, warmup, False)


def _of(model: nn.Module, provenance: Provenance | Growth | Fusion) -> Provenance:
    found = provenance.provenance if isinstance(provenance, Growth | Fusion) else provenance
    if not isinstance(found, Provenance):
        raise MeristemError(
            f"a provenance, a Growth or a Fusion is needed, got {type(found).__name__}; ms.provenance(directory) reads one"
        )
    found.check(_inner(model))
    return found


def _chosen(names: Collection[str], layers: Collection[int | LayerRank] | None) -> set[str]:
    """The tensors that are in these layers. All of them by default."""
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
    """The network inside DDP and torch.compile."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model, keep_torch_compile=False)


def _parameters(model: nn.Module, provenance: Provenance) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """(name, parameter, the label of each of its entries). Tied parameters occur once."""
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
