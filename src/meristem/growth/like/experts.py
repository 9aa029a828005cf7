"""The experts of a target. A dense network grows and is upcycled. A mixture gets copies of its experts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from meristem.anatomy import Anatomy
from meristem.anatomy.huggingface import HuggingFaceBuilder
from meristem.errors import MeristemError
from meristem.growth.methods.more_experts import PER_TOKEN, MoreExperts, grouped
from meristem.growth.methods.upcycle import OF_THE_SOURCE, Upcycle
from meristem.growth.plans.mixtures import MIXTURES, Mixture
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.upcycle_plan import UpcyclePlan

EXPERTS = "experts"  # the kind of axis


def mixture_row(builder: HuggingFaceBuilder, config: Any) -> Mixture | None:
    """How a dense network becomes one of the target's class. None if it does not."""
    row = MIXTURES.get(builder.model_type)
    return row if row is not None and row.model_type == config.model_type else None


def upcycling(builder: HuggingFaceBuilder, row: Mixture, config: Any) -> tuple[Any, Upcycle]:
    """The dense config to which a network grows first, and the upcycling that makes the target from it.

    An expert of u units is one of G shards of a dense block of G u units. G is the smallest number for which
    the block holds the network's own units, and of which the number of experts of a token, and that of all
    experts, are multiples. Copies then stay whole.

    Raises:
        MeristemError: if the target's experts are too small for that, or if it has more kinds of layers than
            upcycling makes.
    """
    theirs = config.to_dict()
    experts, units = int(getattr(config, row.experts)), int(getattr(config, row.ffn))
    top = int(getattr(config, row.per_token)) if row.per_token else 1
    dense_field = "d_ff" if row.ffn == "d_ff" else "intermediate_size"
    own = int(getattr(builder.config, dense_field))
    shards = [g for g in range(1, top + 1) if math.gcd(experts, top) % g == 0]
    granularity = next((g for g in shards if g * units >= own), None)
    if granularity is None:
        works = -(-own // max(shards))
        raise MeristemError(
            f"the target is smaller: the {top} experts of {units} units that a token gets hold {max(shards) * units} of the network's "
            f"{own} feed-forward units; {row.ffn} of at least {works} would work"
        )
    if theirs.get("mlp_only_layers"):
        raise MeristemError(
            f"the target has layers without experts by number (mlp_only_layers {theirs['mlp_only_layers']}), and upcycling places "
            f"experts at regular distances only; {row.every or 'none of them'} would work"
        )
    options: dict[str, Any] = {"num_experts": experts, "experts_per_token": top, "granularity": granularity}
    if row.normalises not in ("always", "never"):
        options["norm_topk_prob"] = bool(getattr(config, row.normalises))
    if row.shared:
        options["shared_experts"] = int(granularity > 1 and getattr(config, row.shared) == granularity * units)
    if row.every:
        options["every"] = int(getattr(config, row.every))
    for sparse, every in row.sparse_layers.items():
        options["every"] = int(getattr(config, every)) // max(1, int(getattr(config, sparse)))
    ours = builder.config.to_dict()
    shared = {name: value for name, value in theirs.items() if name in ours and name not in OF_THE_SOURCE}
    entries = {**ours, **shared, dense_field: granularity * units}
    dense = type(builder.config)(**{name: value for name, value in entries.items() if name != "model_type"})
    return dense, Upcycle(**options)


def more_experts(anatomy: Anatomy, aim: HuggingFaceBuilder, take_target_fields: bool, seed: int) -> MoreExperts | None:
    """The growth of a mixture to the target's experts. None if it has as many.

    The number of experts that a token gets is that of the target if that is exact, or if the target's fields
    are taken.

    Raises:
        MeristemError: if the target has fewer experts.
    """
    axes = anatomy.of_kind(EXPERTS)
    if not axes or aim.sizes.get(axes[0].name, axes[0].size) == axes[0].size:
        return None
    old, new = axes[0].size, aim.sizes[axes[0].name]
    if new < old:
        raise MeristemError(
            f"the target is smaller on some axes: {axes[0].name} {old} -> {new}. The nearest target that works has {axes[0].name} {old}"
        )
    field = per_token(anatomy)
    ours, theirs = (builder.fact(field) if field else None for builder in (anatomy.builder, aim))
    if not isinstance(ours, int) or not isinstance(theirs, int):
        return MoreExperts(new, seed=seed)
    whole = new % old == 0 and theirs * old == ours * new
    return MoreExperts(new, theirs if whole or (take_target_fields and theirs != ours) else None, seed=seed)


def per_token(anatomy: Anatomy) -> str:
    """The config entry that counts the experts of a token. "" if there is none."""
    return next((name for name in PER_TOKEN if isinstance(anatomy.builder.fact(name), int)), "")


def changes_experts(plan: GrowthPlan) -> bool:
    """Whether a plan makes or copies experts."""
    return isinstance(plan, UpcyclePlan) or any(axis.name in plan.maps for axis in plan.source.of_kind(EXPERTS))


def expert_rows(plan: GrowthPlan) -> Iterator[tuple[str, int, int, str, str]]:
    """(axis, from, to, rule, why it is not exact) of a plan that makes or copies experts."""
    if isinstance(plan, UpcyclePlan):
        made = plan.experts
        assert made is not None
        shard = f"one of {made.granularity} shards of the dense block" if made.granularity > 1 else "the dense block"
        why = "" if plan.preserves_function else "the weights of the chosen experts do not sum to one"
        router = "zero" if made.zero_router else "random"
        yield EXPERTS, 1, made.count, f"each expert {shard}, the router {router}", why
        return
    field = per_token(plan.source)
    for axis in (axis for axis in plan.source.of_kind(EXPERTS) if axis.name in plan.maps):
        new = plan.target.sizes[axis.name]
        why = "" if plan.preserves_function else _crowded(plan, field, axis.size, new)
        yield axis.name, axis.size, new, "experts copied, with their rows of the router", why


def _crowded(plan: GrowthPlan, field: str, old: int, new: int) -> str:
    if new % old:
        return f"some experts get more copies than others; a whole multiple of {old} can be exact"
    if obstacle := grouped(plan.source):
        return obstacle
    top = plan.source.builder.fact(field) if field else None
    works = f"; {field} {top * new // old} would be exact" if isinstance(top, int) else ""
    return f"copies of the best expert take the places of others{works}"


def without_experts(anatomy: Anatomy, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that are not numbers of experts."""
    return {axis: size for axis, size in sizes.items() if axis not in {a.name for a in anatomy.of_kind(EXPERTS)}}
