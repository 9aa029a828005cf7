"""From a user's options (a factor, or target sizes by their config names) to target sizes of axes."""

from __future__ import annotations

from collections.abc import Mapping

from meristem.anatomy import Anatomy, Axis
from meristem.anatomy.axis_ref import is_part, skipped_by, whole_of
from meristem.anatomy.heads import Heads
from meristem.errors import MeristemError

SIZED = (
    "hidden",
    "ffn",
    "kv_heads",
    "group",
    "heads",
    "head_dim",
    "vocab",
    "positions",
    "rank",
)  # the kinds that can change
LARGEST_WIDTH, LARGEST_DEPTH = 1 << 26, 1 << 16  # beyond that a number is a slip of the keyboard
ATTENTION_SCOPES = ("", "encoder_", "decoder_")  # whose heads num_attention_heads names


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
    """{axis: target size} for every axis that changes: `width` multiplies all, a named size overrides its own.

    Multi-query attention keeps its single key-value head unless one asks otherwise. Where heads share out hidden_size evenly and
    both are named, head_dim is what they make it.

    Args:
        more: sizes by the name of their axis, which override all others.

    Raises:
        MeristemError: for a factor that is no positive whole number, a size on the wrong side of the present one, or
            heads that do not divide into key-value groups.
    """
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise MeristemError(f"{method}: width must be a whole number of at least 1, got {width!r}")
    asked = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_dim,
    }
    for name, size in asked.items():
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise MeristemError(f"{method}: {name} must be a positive whole number, got {size!r}")
    sizes: dict[str, int] = {}
    hiddens = _own(anatomy, "hidden")
    for axis in hiddens:
        target = _scaled(method, "hidden_size", axis.size, hidden_size, hiddens[0].size)
        sizes[axis.name] = target or axis.size * width
    ffns = _own(anatomy, "ffn")
    if intermediate_size and not ffns:
        raise MeristemError(
            f"{method}: {anatomy.builder.model_type} has no feed-forward size of its own (it follows hidden_size)"
        )
    for axis in ffns:
        target = _scaled(method, "intermediate_size", axis.size, intermediate_size, ffns[0].size)
        sizes[axis.name] = target or axis.size * width
    for axis in _own(anatomy, "heads"):  # of a network outside transformers, whose function has just one such argument
        sizes[axis.name] = num_attention_heads or axis.size * width
    for axis in _own(anatomy, "kv_heads"):
        if axis.scope in ATTENTION_SCOPES:
            sizes |= _heads(anatomy, method, axis.name, width, num_attention_heads, num_key_value_heads)
        else:  # heads of state-space and linear-attention blocks follow the width
            factor = width if hidden_size is None else _whole(method, axis.name, hidden_size, hiddens[0].size)
            sizes |= _heads(anatomy, method, axis.name, factor, None, None)
    sizes |= _head_dims(anatomy, method, sizes, head_dim, num_attention_heads, None if shrink else hidden_size)
    sizes |= _named(anatomy, method, more or {})
    sizes |= _derived(anatomy, method, sizes, intermediate_size)
    for part in [axis for axis in anatomy.axes if is_part(axis)]:
        whole = whole_of(part)
        if whole in sizes and skipped_by(part):
            sizes[part] = sizes[whole] - skipped_by(part)
        elif whole in sizes:
            sizes[part] = _scaled(method, whole, anatomy.sizes[part], sizes[whole], anatomy.sizes[whole]) or 0
    for axis, size in sizes.items():
        if not shrink and anatomy.axes[axis].kind == "group" and _regrouped(anatomy, method, axis, sizes):
            continue
        if size > LARGEST_WIDTH:
            raise MeristemError(
                f"{method}: {axis} of {size:,} is more than any network has ({LARGEST_WIDTH:,} at most)"
            )
        if (size > anatomy.sizes[axis]) if shrink else (size < anatomy.sizes[axis]):
            raise MeristemError(
                f"{method} {'shrinks' if shrink else 'grows'}: asked for {axis} of {size}, the network has "
                f"{anatomy.sizes[axis]}; the nearest target that works is {anatomy.sizes[axis]}"
            )
    return {axis: size for axis, size in sizes.items() if size != anatomy.sizes[axis]}


def _own(anatomy: Anatomy, kind: str) -> list[Axis]:
    """The axes of a kind, without parts of others, which follow their wholes."""
    return [axis for axis in anatomy.of_kind(kind) if not is_part(axis.name)]


def _scaled(method: str, field: str, size: int, target: int | None, first: int) -> int | None:
    """The target of one of several sizes of a kind, when the user names that of the first."""
    if target is None:
        return None
    if size * target % first:
        raise MeristemError(
            f"{method}: {field} {first} -> {target} would take a part of {size} units to "
            f"{size * target / first:g}; use a multiple of {first}"
        )
    return size * target // first


def _whole(method: str, axis: str, target: int, size: int) -> int:
    if target % size:
        raise MeristemError(f"{method}: {axis} follow hidden_size, which has to grow by a whole factor; it is {size}")
    return target // size


def _heads(
    anatomy: Anatomy, method: str, kv_axis: str, width: int, asked_heads: int | None, asked_kv: int | None
) -> dict[str, int]:
    group_axis = Heads.of(kv_axis).group
    kv_heads, group = anatomy.sizes[kv_axis], anatomy.sizes[group_axis]
    multi_query = kv_heads == 1 and group > 1
    heads = asked_heads or kv_heads * group * width
    if asked_kv:
        new_kv = asked_kv
    elif multi_query:
        new_kv = 1
    elif asked_heads and heads % group == 0:
        new_kv = heads // group  # the group keeps its size
    else:
        new_kv = kv_heads * width
    if heads % new_kv:
        works = max(1, round(heads / new_kv)) * new_kv
        raise MeristemError(
            f"{method}: {heads} attention heads cannot be shared evenly by {new_kv} key-value heads; "
            f"num_attention_heads={works} or num_key_value_heads={heads // group or 1} would work"
        )
    return {kv_axis: new_kv, group_axis: heads // new_kv}


def _derived(anatomy: Anatomy, method: str, sizes: dict[str, int], asked: int | None) -> dict[str, int]:
    """Sizes that the architecture derives from others. Raises MeristemError where another one was asked for."""
    changed = {axis: size for axis, size in sizes.items() if size != anatomy.sizes[axis]}
    if not any(anatomy.axes[axis].kind == "hidden" for axis in changed):
        return {}
    derived = dict(anatomy.builder.derived(changed))
    factor = anatomy.builder.fact("expand")  # state-space blocks are so many times as wide as the stream
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
        known = [name for name, a in anatomy.axes.items() if a.kind in SIZED and not is_part(name)]
        if axis not in known:
            raise MeristemError(
                f"{method}: {anatomy.builder.model_type} has no axis {axis!r} that can change; it has {', '.join(known)}"
            )
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise MeristemError(f"{method}: {axis} must be a positive whole number, got {size!r}")
    return dict(sizes)


def _regrouped(anatomy: Anatomy, method: str, group: str, sizes: dict[str, int]) -> bool:
    """Whether fewer query heads than before share a key-value head, while no head is lost.

    Raises:
        MeristemError: if query heads are lost, or one would be left without a copy.
    """
    kv_heads = Heads.of(group).kv_heads
    old_kv, old_group, new_kv, new_group = anatomy.sizes[kv_heads], anatomy.sizes[group], sizes[kv_heads], sizes[group]
    if new_group >= old_group or new_kv <= old_kv:
        return False
    if new_kv // old_kv * new_group < old_group:
        needed = -(-old_group // new_group) * old_kv
        raise MeristemError(
            f"{method}: {new_kv * new_group} query heads on {new_kv} key-value heads leave some of the present "
            f"{old_kv * old_group} on {old_kv} without a copy; {needed * new_group} on {needed} would work"
        )
    return True


def _head_dims(
    anatomy: Anatomy, method: str, sizes: dict[str, int], asked: int | None, heads: int | None, hidden: int | None
) -> dict[str, int]:
    """{axis: size} of head_dim: as asked, or as named heads share out a named hidden_size."""
    axes = [axis for axis in _own(anatomy, "head_dim") if axis.scope in ATTENTION_SCOPES]
    if asked and not axes:
        raise MeristemError(f"{method}: {anatomy.builder.model_type} has no head_dim that Meristem knows")
    if asked:
        return {axis.name: asked for axis in axes}
    found = {}
    for axis in axes:
        split = anatomy.builder.splits.get(axis.scope)
        if split is None or not (heads and hidden):
            continue
        width = split[1] * sizes.get(split[0], anatomy.sizes[split[0]])
        count = sizes[f"{axis.scope}kv_heads"] * sizes[f"{axis.scope}group"]
        if width % count:
            works = max(1, round(width / count)) * count / split[1]
            raise MeristemError(
                f"{method}: hidden_size={hidden} cannot be shared out evenly by {count} heads; hidden_size={works} would work"
            )
        found[axis.name] = int(width // count)
    return found


def depths_of(anatomy: Anatomy, method: str, blocks: str) -> dict[str, int]:
    """{axis of depth: length} of the lists of blocks that `blocks` names: "all", a scope such as "decoder" or an axis of depth.

    Raises:
        MeristemError: if it names none that the network has.
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
    """{axis: target length} for every list of blocks; `depth` multiplies all, `num_hidden_layers` sets all, `more` some by name.

    Args:
        blocks: which lists, see `depths_of`.

    Raises:
        MeristemError: for a factor that is no positive whole number, a length on the wrong side of the present one, or a
            network without a list of blocks.
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
            raise MeristemError(
                f"{method}: {target:,} {axis} are more than any network has ({LARGEST_DEPTH:,} at most)"
            )
        if (target > length) if shrink else (target < length):
            raise MeristemError(
                f"{method} {'shrinks' if shrink else 'grows'}: asked for {target} {axis}, the network has {length}; "
                f"the nearest target that works is {length}"
            )
    return {axis: target for axis, target in targets.items() if target != anatomy.depths[axis]}
