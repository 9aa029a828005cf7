"""From a user's options (a factor, or target sizes by their config names) to target sizes of axes."""

from __future__ import annotations

from dataclasses import dataclass

from meristem.anatomy import Anatomy
from meristem.errors import MeristemError


@dataclass(frozen=True)
class WidthTargets:
    """Target sizes of the axes that a width growth may change, by axis name."""

    sizes: dict[str, int]

    @staticmethod
    def resolve(
        anatomy: Anatomy,
        method: str,
        width: int = 1,
        hidden_size: int | None = None,
        intermediate_size: int | None = None,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
    ) -> WidthTargets:
        """Targets for every axis: `width` multiplies all of them, a named size overrides its own.

        Multi-query attention keeps its single key-value head unless one asks otherwise.

        Raises:
            MeristemError: for a factor that is no positive whole number, a size below the present one, heads that
                do not divide into key-value groups, or a request that changes nothing.
        """
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise MeristemError(f"{method}: width must be a whole number of at least 1, got {width!r}")
        asked = {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads,
        }
        for name, size in asked.items():
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise MeristemError(f"{method}: {name} must be a positive whole number, got {size!r}")
        sizes: dict[str, int] = {}
        for axis in anatomy.of_kind("hidden"):
            sizes[axis.name] = hidden_size or axis.size * width
        ffns = anatomy.of_kind("ffn")
        if intermediate_size and not ffns:
            raise MeristemError(
                f"{method}: {anatomy.builder.model_type} has no feed-forward size of its own (it follows hidden_size)"
            )
        for axis in ffns:
            sizes[axis.name] = _scaled(method, axis.size, intermediate_size, ffns[0].size) or axis.size * width
        for axis in anatomy.of_kind("kv_heads"):
            sizes |= _heads(anatomy, method, axis.name, width, num_attention_heads, num_key_value_heads)
        smaller = {a: s for a, s in sizes.items() if s < anatomy.sizes[a]}
        if smaller:
            axis, size = next(iter(smaller.items()))
            raise MeristemError(
                f"{method} grows: asked for {axis} of {size}, the network has {anatomy.sizes[axis]}; "
                f"the nearest target that works is {anatomy.sizes[axis]}"
            )
        return WidthTargets({axis: size for axis, size in sizes.items() if size != anatomy.sizes[axis]})


def _scaled(method: str, size: int, target: int | None, first: int) -> int | None:
    """The target of one of several feed-forward sizes, when the user names that of the first."""
    if target is None:
        return None
    if size * target % first:
        raise MeristemError(
            f"{method}: intermediate_size {first} -> {target} would take a feed-forward of {size} units to "
            f"{size * target / first:g}; use a multiple of {first}"
        )
    return size * target // first


def _heads(
    anatomy: Anatomy, method: str, kv_axis: str, width: int, asked_heads: int | None, asked_kv: int | None
) -> dict[str, int]:
    group_axis = kv_axis.replace("kv_heads", "group")
    kv_heads, group = anatomy.sizes[kv_axis], anatomy.sizes[group_axis]
    multi_query = kv_heads == 1 and group > 1
    heads = asked_heads or kv_heads * group * width
    if asked_kv:
        new_kv = asked_kv
    elif multi_query:
        new_kv = 1
    elif asked_heads and heads * kv_heads % (kv_heads * group) == 0:
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
