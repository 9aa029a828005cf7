"""Target numbers of heads, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping

from meristem.anatomy import Anatomy, Axis
from meristem.anatomy.axis_ref import is_part, whole_of
from meristem.anatomy.heads import Heads
from meristem.errors import MeristemError

ATTENTION_SCOPES = ("", "encoder_", "decoder_")  # whose heads num_attention_heads names


def own_axes(anatomy: Anatomy, kind: str) -> list[Axis]:
    """The axes of a kind, without parts of other axes, which follow their wholes."""
    return [axis for axis in anatomy.of_kind(kind) if not is_part(axis.name)]


def check_shaped(anatomy: Anatomy, method: str, sizes: Mapping[str, int]) -> None:
    """Whether tensors have these axes, where sizes are to change. DeepSeek's heads have parts of several
    sizes, and its `head_dim` is that of its rotary tables alone.

    Raises:
        MeristemError: if no tensor has one of the axes.
    """
    used = {axis for tensor in anatomy.tensors.values() for one in tensor.dimensions for axis in one.layout.axes()}
    used |= {whole_of(axis) for axis in used if is_part(axis)}
    for name, size in sizes.items():
        if name not in used and size != anatomy.sizes[name]:
            raise MeristemError(
                f"{method}: no tensor of {anatomy.builder.model_type} has {anatomy.axes[name].source} units, so it cannot change; asked for "
                f"{size}, found {anatomy.sizes[name]}; leave it, and grow the number of heads, or other axes"
            )


def heads_targets(
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


def is_regrouped(anatomy: Anatomy, method: str, group: str, sizes: dict[str, int]) -> bool:
    """Whether a key-value head serves fewer query heads than before, while no head is lost.

    Raises:
        MeristemError: if query heads are lost, or if one would have no copy.
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


def head_dim_targets(
    anatomy: Anatomy, method: str, sizes: dict[str, int], asked: int | None, heads: int | None, hidden: int | None
) -> dict[str, int]:
    """{axis: size} of head_dim: as requested, or as the given number of heads divides a given hidden_size."""
    axes = [axis for axis in own_axes(anatomy, "head_dim") if axis.scope in ATTENTION_SCOPES]
    if asked and not axes:
        raise MeristemError(f"{method}: {anatomy.builder.model_type} has no head_dim that Meristem knows")
    if asked:
        check_shaped(anatomy, method, {axis.name: asked for axis in axes})
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
