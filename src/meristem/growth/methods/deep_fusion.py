"""Deep Fusion: several trained networks side by side in one larger network.

Mazzawi, Gonzalvo, Wunder, Jerome, Dherin: "Deep Fusion: Efficient Network Training via Pre-trained
Initializations", ICML 2024, arXiv:2306.11903. The operator is the one that its equations describe.
`deep_fusion.md` states what the paper leaves open. In terms of axis maps, parent i writes and reads units of
its own, [0; I; 0], on every axis. The fused tensor is the sum of the mapped tensors of all parents. Cross
blocks are zero, and the head averages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy import Anatomy, Builder, TensorAnatomy
from meristem.anatomy.axis_ref import are_pairs, is_frequencies, is_part, kind_of, skipped_by
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.heads import Heads
from meristem.anatomy.trace import Inputs, norm_before_head, run_watched
from meristem.errors import MeristemError
from meristem.growth.methods.values import check_values, convex
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.structure.alibi import has_alibi
from meristem.growth.structure.differences import check_alike
from meristem.growth.structure.modeling_grouped import group_sizes
from meristem.growth.structure.tying import linear_readers, repair

JOINED = ("hidden", "ffn", "kv_heads", "heads")  # the kinds of axes that lie side by side; all others have to agree
SELF_FUSION_NOISE = 0.1
AGREES_BY = {
    "head_dim": "head_dim",
    "vocab": "vocab_size",
    "positions": "max_position_embeddings",
}  # kind: option of a growth


@dataclass(frozen=True)
class DeepFusion:
    """The options of Deep Fusion (arXiv:2306.11903): the parents side by side, with cross blocks of zero and
    a head that averages.

    Args:
        weights: the weights of the parents in the logits of the fused network. They are positive and sum to
            1. Equal by default.
        norm: what happens to norms over the units of all parents, which divide by one common size. "plain"
            changes nothing, as in the paper. "equalised" first scales the residual streams of the parents to
            one size, measured on inputs; pre-norm networks keep their function under that scaling. "grouped"
            gives each parent a norm of its own, which is exact. The result is then of a class that is shipped
            with its checkpoint (see `grouped_norms`).
        noise: the standard deviation of the noise on readers, relative to that of each tensor. It breaks the
            symmetry of a self-fusion, and it cancels between the copies. By default 0.1 if all parents are
            one network, which SGD could not tell apart otherwise. Different parents get none, because nothing
            would cancel it.
        seed: the seed of the noise.
        allow_differences: fuse networks whose configs say that they compute differently (see `differences`).
            The result computes as the first one does.
        experts: fuse dense parents of one size as the experts of a mixture (see `fusion.experts`). Their
            feed-forward blocks become the experts, all other tensors are averaged, and the router is new. The
            distance from the mean of the parents is measured.
        experts_per_token: how many experts a token gets.

    Raises:
        MeristemError: if `experts` is combined with `norm` or `noise`, or if `experts_per_token` is not a
            whole number of at least 1. When networks are fused, if `weights` are not one positive number for
            each parent with a sum of 1.
    """

    name: ClassVar[str] = "deep_fusion"
    weights: Sequence[float] | None = None
    norm: Literal["plain", "equalised", "grouped"] = "plain"
    noise: float | None = None
    seed: int = 0
    allow_differences: bool = False
    experts: bool = False
    experts_per_token: int = 2

    def __post_init__(self) -> None:
        check_values(self)
        if self.experts and (self.norm != "plain" or self.noise):
            raise MeristemError(
                "experts cannot be combined with norm or noise: experts are not joined into wider layers"
            )
        if isinstance(self.experts_per_token, bool) or self.experts_per_token < 1:
            raise MeristemError(
                f"experts_per_token must be a whole number of at least 1, got {self.experts_per_token!r}"
            )

    def convex(self, parents: int) -> tuple[float, ...]:
        """The weights of that many parents. Raises MeristemError unless they are positive and sum to 1."""
        return convex(self.weights, parents)

    def plans(
        self, anatomies: Sequence[Anatomy], models: Sequence[nn.Module], inputs: Mapping[str, Tensor]
    ) -> list[GrowthPlan]:
        """One plan for each parent. The fused network is the sum of what the plans make.

        Args:
            anatomies: the anatomy of each parent.
            models: the parents.
            inputs: keyword arguments of forward, on which "equalised" measures the residual streams of the
                parents.

        Raises:
            MeristemError: if the parents do not fit together. The message names what differs.
        """
        sizes = joined_sizes(anatomies)
        for number, other in enumerate(anatomies[1:] if not self.allow_differences else [], start=2):
            check_alike(anatomies[0], other, number)
        first = anatomies[0].builder
        mixed = len({frozenset((t.name, t.tied_to) for t in a.tensors.values() if t.tied_to) for a in anatomies}) > 1
        target = self._with_norms(first.resized(sizes, first.depths, {}), anatomies)
        _check_following(anatomies[0], sizes, target)
        maps = [_own_units(anatomies, parent, sizes) for parent in range(len(models))]
        fixes = [
            repair(a, target, m, model, keep_tied=not mixed, inputs=inputs or None)
            for a, m, model in zip(anatomies, maps, models, strict=True)
        ]
        untied = mixed or any(fix.untied for fix in fixes)  # a tied and an untied head: both count, as two
        if untied:
            target = self._with_norms(first.resized(sizes, first.depths, {"tie_word_embeddings": False}), anatomies)
        streams = _stream_sizes(anatomies, models, inputs) if self.norm == "equalised" else [1.0] * len(models)
        mean = sum(streams) / len(streams)
        weights = self.convex(len(models))
        return [
            GrowthPlan(
                source=anatomy,
                target=target,
                maps=own,
                layers={},
                preserves_function=False,
                scales=_scales(anatomy, own, model, fix.scales, weight, mean / stream, untied, inputs or None),
                untied=untied,
            )
            for anatomy, own, model, fix, weight, stream in zip(
                anatomies, maps, models, fixes, weights, streams, strict=True
            )
        ]

    def _with_norms(self, target: Builder, anatomies: Sequence[Anatomy]) -> Builder:
        """The builder of the fused network. With "grouped", the units of each parent have a norm of their
        own.
        """
        if self.norm != "grouped":
            return target
        from meristem.anatomy.huggingface import HuggingFaceBuilder
        from meristem.growth.structure.grouped_norms import grouped_class, grouped_config

        if not isinstance(target, HuggingFaceBuilder):
            raise MeristemError('norm="grouped" is for transformers models: their checkpoints can carry the class')
        if any("hidden" not in anatomy.sizes for anatomy in anatomies):
            raise MeristemError(f'norm="grouped" needs one residual stream; {target.model_type} has several widths')
        groups = [group for anatomy in anatomies for group in _norm_groups(anatomy)]
        config = grouped_config(target.config, target.model_class, groups)
        return HuggingFaceBuilder(grouped_class(target.model_class)[1], config, target.reading)


def _check_following(anatomy: Anatomy, sizes: Mapping[str, int], target: Builder) -> None:
    """Raises MeristemError if a function outside transformers makes other sizes from the joined arguments
    than the parents have together (a feed-forward width that is rounded).
    """
    builder = anatomy.builder
    for axis, (name, place) in builder.following.items() if isinstance(builder, FunctionBuilder) else ():
        if target.sizes[axis] != sizes[axis]:
            raise MeristemError(
                f"{builder.model_type} cannot be fused: dimension {place} of {name} holds {sizes[axis]} units of all parents together, and "
                f"the function makes {target.sizes[axis]} of the joined arguments; let that size be an argument of the function"
            )


def _norm_groups(anatomy: Anatomy) -> list[int]:
    """The groups of units that have norms of their own: those of an earlier fusion, or all units as one
    group.
    """
    groups, hidden = anatomy.builder.fact("norm_groups"), anatomy.sizes["hidden"]
    return group_sizes(groups, hidden) if groups else [hidden]


def joined_sizes(anatomies: Sequence[Anatomy]) -> dict[str, int]:
    """The axis sizes of the fused network.

    Raises:
        MeristemError: if a parent differs from the first in type, depth, tensors or sizes, or if an axis
            cannot hold two parents side by side.
    """
    first = anatomies[0]
    if len(anatomies) < 2:
        raise MeristemError("fusion needs at least two networks")
    for number, other in enumerate(anatomies[1:], start=2):
        _check_pair(first, other, number)
    if has_alibi(first):
        raise MeristemError("networks with ALiBi cannot be fused: a head's slope follows from the number of heads")
    odd = [axis for axis in first.axes if is_frequencies(axis) or are_pairs(axis) or skipped_by(axis)]
    if odd:
        raise MeristemError(f"{first.builder.model_type} cannot be fused: {odd[0]} cannot be joined")
    return {
        axis: sum(a.sizes[axis] for a in anatomies) if kind_of(axis) in JOINED else size
        for axis, size in first.sizes.items()
        if not is_part(axis)
    }


def _check_pair(first: Anatomy, other: Anatomy, number: int) -> None:
    def differ(what: str, ours: object, theirs: object) -> MeristemError:
        return MeristemError(
            f"networks 1 and {number} differ in {what}: {ours} and {theirs}; it must be the same in both"
        )

    if first.builder.model_type != other.builder.model_type:
        raise differ("type", first.builder.model_type, other.builder.model_type)
    if first.depths != other.depths:
        raise differ("depth", dict(first.depths), dict(other.depths))
    for axis, size in first.sizes.items():
        theirs = other.sizes.get(axis)
        if theirs is None or (kind_of(axis) not in JOINED and theirs != size):
            error = differ(first.axes[axis].source, size, theirs)
            raise MeristemError(f"{error}{_agreeing(first, other, number, axis)}")
    for name, tensor in first.tensors.items():
        theirs = other.tensors.get(name)
        layouts = [str(d.layout) for d in tensor.dimensions]
        if theirs is None or [str(d.layout) for d in theirs.dimensions] != layouts:
            raise differ(f"the tensor {name}", layouts, theirs and [str(d.layout) for d in theirs.dimensions])
    if more := sorted(set(other.tensors) - set(first.tensors)):
        raise MeristemError(
            f"network {number} has tensors that network 1 lacks: {', '.join(more[:3])}; both must have the same"
        )


def _agreeing(first: Anatomy, other: Anatomy, number: int, axis: str) -> str:
    """The growth that makes two networks agree in an axis."""
    ours, theirs, kind = first.sizes[axis], other.sizes.get(axis), kind_of(axis)
    if theirs is None or kind not in (*AGREES_BY, "group"):
        return ""
    if kind == "group":  # fewer query heads for each key-value head, by more of the latter
        smaller = 1 if ours > theirs else number
        kv_heads = (first if smaller == 1 else other).sizes[Heads.of(axis).kv_heads]
        heads = kv_heads * max(ours, theirs)
        options = f"num_attention_heads={heads}, num_key_value_heads={heads // min(ours, theirs)}"
        return f". Grow network {smaller} first, by {options}" if heads % min(ours, theirs) == 0 else ""
    smaller = 1 if ours < theirs else number
    said = " if both have one tokenizer" if kind == "vocab" else ""
    return f". Grow network {smaller} first, by {AGREES_BY[kind]}={max(ours, theirs)}{said}"


def _own_units(anatomies: Sequence[Anatomy], parent: int, sizes: Mapping[str, int]) -> dict[str, AxisMap]:
    """The map of every axis that is joined. The units of this parent follow those of the parents before
    it.
    """
    maps = {}
    for axis in anatomies[parent].axes:
        if kind_of(axis) not in JOINED:
            continue
        widths = [anatomy.sizes[axis] for anatomy in anatomies]
        before, own, total = sum(widths[:parent]), widths[parent], sum(widths)
        place = torch.arange(total)
        inside = (place >= before) & (place < before + own)
        units = UnitMap.select((place - before).clamp(0, own - 1), own, inside.double())
        maps[axis] = AxisMap(units, units, twins=False)
    return maps


def is_joined(anatomy: Anatomy, tensor: TensorAnatomy, maps: Mapping[str, AxisMap], *, reads: bool) -> bool:
    """Whether a tensor reads (with `reads`) or writes, scales or shifts (without it) units that are side by
    side.
    """
    return any(
        bool(anatomy.axes_of(d.layout) & set(maps))
        for d in tensor.dimensions
        if (d.role == "read") == reads and d.role != "fixed"
    )


def _scales(
    anatomy: Anatomy,
    maps: Mapping[str, AxisMap],
    model: nn.Module,
    repaired: Mapping[str, float],
    weight: float,
    stretch: float,
    untied: bool,
    inputs: Inputs = None,
) -> dict[str, float]:
    """The factor of each tensor of a parent: width constants, its weight in the mean, and the size of its
    residual stream.
    """
    scales = dict(repaired)

    def times(name: str, factor: float) -> None:
        scales[name] = scales.get(name, 1.0) * factor

    for tensor in anatomy.tensors.values():
        if tensor.tied_to is not None and not untied:
            continue
        if not is_joined(anatomy, tensor, maps, reads=False):  # what all parents write to one place: the mean
            times(tensor.name, weight)
        elif stretch != 1 and tensor.writes("hidden") and not any(d.role == "gain" for d in tensor.dimensions):
            times(tensor.name, stretch)
    head = next((t for t in anatomy.tensors.values() if t.tied_to and is_joined(anatomy, t, maps, reads=True)), None)
    if not untied and head is not None:
        norm = norm_before_head(model, inputs, head.name.rpartition(".")[0])
        for part in ("weight", "bias"):
            if f"{norm}.{part}" in anatomy.tensors:  # the tied head reads with the embedding, so its share goes here
                times(f"{norm}.{part}", weight / stretch)
        readers = linear_readers(anatomy, head, model, inputs) if norm is None else []
        for name in readers:
            times(name, 1 / weight)
        for name in (head.name, head.tied_to or head.name) if readers else ():
            times(name, weight)
    return scales


def _stream_sizes(
    anatomies: Sequence[Anatomy], models: Sequence[nn.Module], inputs: Mapping[str, Tensor]
) -> list[float]:
    """The root mean square of the residual stream of each parent, averaged over its blocks."""
    from meristem.growth.structure.silence import silencing

    found = []
    for anatomy, model in zip(anatomies, models, strict=True):
        if silencing(anatomy, model) is None:
            raise MeristemError(
                'norm="equalised" needs pre-norm networks; these have a norm on the residual stream itself'
            )
        sizes: list[float] = []

        def record(_: nn.Module, args: tuple, sizes: list[float] = sizes) -> None:
            sizes.append(float(args[0].detach().float().square().mean().sqrt()))

        blocks = [child for b in anatomy.blocks for child in model.get_submodule(b.prefix).children()]
        run_watched(
            model, lambda blocks=blocks, record=record: [b.register_forward_pre_hook(record) for b in blocks], inputs
        )
        found.append(sum(sizes) / len(sizes))
    return found
