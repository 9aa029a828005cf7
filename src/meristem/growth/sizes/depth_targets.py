"""Target lengths of lists of blocks."""

from __future__ import annotations

from collections.abc import Mapping

from meristem.anatomy import Anatomy
from meristem.errors import MeristemError

LARGEST_DEPTH = 1 << 16  # beyond that a number is a slip of the keyboard


def depths_of(anatomy: Anatomy, method: str, blocks: str) -> dict[str, int]:
    """{axis of depth: length} of the lists of blocks that `blocks` names: "all", a scope such as "decoder",
    or an axis of depth.

    Raises:
        MeristemError: if the network has no list of this name.
    """
    chosen = {a: d for a, d in anatomy.depths.items() if blocks in ("all", a) or a.startswith(f"{blocks}_")}
    if not chosen and blocks != "all":
        known = ", ".join(anatomy.depths) or "none"
        raise MeristemError(f"{method}: {anatomy.builder.model_type} has no blocks {blocks!r}; it has {known}")
    return chosen


def depth_targets(
    anatomy: Anatomy,
    method: str,
    depth: int = 1,
    num_hidden_layers: int | None = None,
    more: Mapping[str, int] | None = None,
    shrink: bool = False,
    blocks: str = "all",
) -> dict[str, int]:
    """{axis: target length} for every list of blocks. `depth` multiplies all, `num_hidden_layers` sets all,
    and `more` sets some by name.

    Args:
        anatomy: the anatomy of the network.
        method: the name of the method, for messages.
        depth: the factor.
        num_hidden_layers: the target length of all lists.
        more: target lengths by name.
        shrink: whether lengths have to be smaller than the present ones, instead of larger.
        blocks: which lists (see `depths_of`).

    Raises:
        MeristemError: if the factor is not a positive whole number, if a length is not larger (or smaller)
            than the present one, or if the network has no list of blocks.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise MeristemError(f"{method}: depth must be a whole number of at least 1, got {depth!r}")
    for name, asked in {"num_hidden_layers": num_hidden_layers, **(more or {})}.items():
        if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
            raise MeristemError(f"{method}: {name} must be a positive whole number, got {asked!r}")
    if not anatomy.depths and (depth > 1 or num_hidden_layers):
        raise MeristemError(f"{method}: {anatomy.builder.model_type} has no list of repeated blocks")
    unknown = set(more or {}) - set(anatomy.depths)
    if unknown:
        raise MeristemError(
            f"{method}: {anatomy.builder.model_type} has no list of blocks {min(unknown)!r}; it has {', '.join(anatomy.depths)}"
        )
    lengths = depths_of(anatomy, method, blocks)
    targets = {axis: num_hidden_layers or length * depth for axis, length in lengths.items()} | dict(more or {})
    for axis, target in targets.items():
        length = anatomy.depths[axis]
        if target > LARGEST_DEPTH:
            raise MeristemError(f"{method}: {target:,} {axis} are too many ({LARGEST_DEPTH:,} at most)")
        if (target > length) if shrink else (target < length):
            raise MeristemError(
                f"{method} {'shrinks' if shrink else 'grows'}: asked for {target} {axis}, the network has {length}; "
                f"the nearest target that works is {length}"
            )
    return {axis: target for axis, target in targets.items() if target != anatomy.depths[axis]}
