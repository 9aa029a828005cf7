"""From the options of a user (a factor, or target sizes by their config names) to target sizes of axes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import is_part, skipped_by, whole_of
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.heads import Heads
from meristem.errors import MeristemError
from meristem.growth.sizes.head_targets import (
    ATTENTION_SCOPES,
    check_shaped,
    head_dim_targets,
    heads_targets,
    is_regrouped,
    own_axes,
)

SIZED = (
    "hidden",
    "ffn",
    "kv_heads",
    "group",
    "heads",
    "head_dim",
    "vocab",
    "positions",
    "projection",
    "rank",
)  # the kinds that can change
LARGEST_WIDTH = 1 << 20  # beyond that a number is a slip of the keyboard
LARGEST_TABLE = 1 << 26  # rows of a table: tokens, positions


def width_targets(
    anatomy: Anatomy,
    method: str,
    width: int = 1,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    head_dim: int | None = None,
    more: Mapping[str, int] | None = None,
    shrink: bool = False,
) -> dict[str, int]:
    """{axis: target size} for every axis that changes. `width` multiplies all, and a named size overrides its
    own.

    Multi-query attention keeps its single key-value head unless another number is requested. If heads divide
    hidden_size evenly and both are named, head_dim follows from them.

    Args:
        anatomy: the anatomy of the network.
        method: the name of the method, for messages.
        width: the factor.
        hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim: target sizes.
        more: sizes by the name of their axis, which override all others.
        shrink: whether sizes have to be smaller than the present ones, instead of larger.

    Raises:
        MeristemError: if the factor is not a positive whole number, if a size is not larger (or smaller) than
            the present one, or if heads do not divide into key-value groups.
    """
    asked = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_dim,
    }
    _check_numbers(method, width, asked)
    sizes = _plain(anatomy, method, width, asked)
    for axis in own_axes(anatomy, "kv_heads"):
        if Heads.of(axis.name).group not in anatomy.axes:  # the only heads of a network outside transformers
            sizes[axis.name] = num_key_value_heads or num_attention_heads or axis.size * width
        elif axis.scope in ATTENTION_SCOPES:
            sizes |= heads_targets(anatomy, method, axis.name, width, num_attention_heads, num_key_value_heads)
        else:  # heads of state-space and linear-attention blocks follow the width
            factor = width if hidden_size is None else _whole(anatomy, method, axis.name, hidden_size)
            sizes |= heads_targets(anatomy, method, axis.name, factor, None, None)
    sizes |= head_dim_targets(anatomy, method, sizes, head_dim, num_attention_heads, hidden_size)
    sizes |= _named(anatomy, method, more or {})
    sizes |= _derived(anatomy, method, sizes, intermediate_size)
    sizes |= _parts(anatomy, method, sizes)
    _check_side(anatomy, method, sizes, shrink)
    return {axis: size for axis, size in sizes.items() if size != anatomy.sizes[axis]}


def _check_numbers(method: str, width: int, asked: Mapping[str, int | None]) -> None:
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise MeristemError(f"{method}: width must be a whole number of at least 1, got {width!r}")
    for name, size in asked.items():
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise MeristemError(f"{method}: {name} must be a positive whole number, got {size!r}")


def _plain(anatomy: Anatomy, method: str, width: int, asked: Mapping[str, int | None]) -> dict[str, int]:
    """The stream and the feed-forward units."""
    sizes: dict[str, int] = {}
    for kind, name in (("hidden", "hidden_size"), ("ffn", "intermediate_size")):
        axes = own_axes(anatomy, kind)
        if kind == "ffn" and asked[name] and not axes:
            raise MeristemError(
                f"{method}: {anatomy.builder.model_type} has no feed-forward size of its own (it follows hidden_size)"
            )
        for axis in axes:
            sizes[axis.name] = _scaled(method, name, axis.size, asked[name], axes[0].size) or axis.size * width
    for axis in own_axes(
        anatomy, "heads"
    ):  # of a network outside transformers, whose function has just one such argument
        sizes[axis.name] = asked["num_attention_heads"] or axis.size * width
    return sizes


def _parts(anatomy: Anatomy, method: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Parts of axes, which follow their wholes."""
    found: dict[str, int] = {}
    for part in (axis for axis in anatomy.axes if is_part(axis)):
        whole, known = whole_of(part), {**sizes, **found}
        if whole in known and skipped_by(part):
            found[part] = known[whole] - skipped_by(part)
        elif whole in known:
            found[part] = _scaled(method, whole, anatomy.sizes[part], known[whole], anatomy.sizes[whole]) or 0
    return found


def _check_side(anatomy: Anatomy, method: str, sizes: dict[str, int], shrink: bool) -> None:
    """Raises MeristemError if a size is not larger (or smaller) than the present one, or if it is absurdly
    large.
    """
    for axis, size in sizes.items():
        if not shrink and anatomy.axes[axis].kind == "group" and is_regrouped(anatomy, method, axis, sizes):
            continue
        largest = LARGEST_TABLE if anatomy.axes[axis].kind in ("vocab", "positions") else LARGEST_WIDTH
        if not shrink and size > max(largest, anatomy.sizes[axis]):
            raise MeristemError(f"{method}: {axis} of {size:,} is too large ({largest:,} at most)")
        if shrink and anatomy.axes[axis].kind == "group" and size > anatomy.sizes[axis]:
            kv_heads = sizes.get(Heads.of(axis).kv_heads, anatomy.sizes[Heads.of(axis).kv_heads])
            raise MeristemError(
                f"{method}: {kv_heads * size} heads on {kv_heads} key-value heads would put query heads on key-value heads that they "
                f"were not trained with; {kv_heads * anatomy.sizes[axis]} heads on {kv_heads} would work"
            )
        if (size > anatomy.sizes[axis]) if shrink else (size < anatomy.sizes[axis]):
            raise MeristemError(
                f"{method} {'shrinks' if shrink else 'grows'}: asked for {axis} of {size}, the network has "
                f"{anatomy.sizes[axis]}; the nearest target that works is {anatomy.sizes[axis]}"
            )


def _scaled(method: str, field: str, size: int, target: int | None, first: int) -> int | None:
    """The target of one of several sizes of a kind, if the user names that of the first."""
    if target is None:
        return None
    if size * target % first:
        step = first // math.gcd(size, first)
        below = target // step * step
        near = [n for n in (below, below + step) if n and n != first and (n < first) == (target < first)]
        raise MeristemError(
            f"{method}: {field} {first} -> {target} would grow a part of {size} of its units to {size * target / first:g}; the target has "
            f"to be a multiple of {step}: {' or '.join(map(str, near or [first]))} would work"
        )
    return size * target // first


def _whole(anatomy: Anatomy, method: str, axis: str, target: int) -> int:
    hidden = own_axes(anatomy, "hidden")[0]
    if target % hidden.size:
        above = -(-target // hidden.size) * hidden.size
        raise MeristemError(
            f"{method}: {axis} follow hidden_size, which is {hidden.size} and has to grow by a whole factor, as to {above}; "
            f"--size {hidden.name}={target} grows that axis alone"
        )
    return target // hidden.size


def _derived(anatomy: Anatomy, method: str, sizes: dict[str, int], asked: int | None) -> dict[str, int]:
    """Sizes that the architecture derives from others. Raises MeristemError if another one was requested."""
    changed = {axis: size for axis, size in sizes.items() if size != anatomy.sizes[axis]}
    follows = isinstance(anatomy.builder, FunctionBuilder) and bool(anatomy.builder.following)
    if not follows and not any(anatomy.axes[axis].kind == "hidden" for axis in changed):
        return {}
    derived = dict(anatomy.builder.derived(changed))
    factor = anatomy.builder.fact("expand")  # the width of state-space blocks is a multiple of the stream's
    if (
        asked is None
        and "ffn" not in derived
        and factor
        and anatomy.sizes.get("ffn") == factor * anatomy.sizes["hidden"]
    ):
        derived["ffn"] = max(sizes["ffn"], int(factor * sizes["hidden"]))
    for axis, size in derived.items():
        if anatomy.axes[axis].kind == "ffn" and asked not in (None, size):
            raise MeristemError(
                f"{method}: {anatomy.builder.model_type} derives {anatomy.axes[axis].source} from hidden_size: asked for {asked}, "
                f"{size} would work"
            )
    return derived


def _named(anatomy: Anatomy, method: str, sizes: Mapping[str, int]) -> dict[str, int]:
    for axis, size in sizes.items():
        follows = anatomy.builder.following if isinstance(anatomy.builder, FunctionBuilder) else {}
        known = [n for n, a in anatomy.axes.items() if a.kind in SIZED and not is_part(n) and n not in follows]
        if axis not in known:
            raise MeristemError(
                f"{method}: {anatomy.builder.model_type} has no axis {axis!r} that can change; it has {', '.join(known)}"
            )
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise MeristemError(f"{method}: {axis} must be a positive whole number, got {size!r}")
    check_shaped(anatomy, method, {axis: size for axis, size in sizes.items() if anatomy.axes[axis].kind == "head_dim"})
    return dict(sizes)
