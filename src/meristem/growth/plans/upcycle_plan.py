"""From a dense network to a mixture of experts, tensor by tensor. What both have keeps its name and its
values. Every tensor that only the mixture has is explained by the dense feed-forward block in its place,
or refused.

With G = granularity, an expert is one of G shards of the dense block: expert e holds shard e mod G of copy e
// G. For the k experts that a token gets, with weights w_e, the output is `scale` times the sum of w_e
shard_e. If the weights sum to one and the G experts of a copy have one router row, they are chosen together,
and scale = G gives the dense output for any router. If the weights are the softmax over all E experts, a
router of zeros gives each 1 / E, and scale = G E / k.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy import Builder, TensorAnatomy
from meristem.errors import MeristemError
from meristem.growth.plans.mixtures import Mixture
from meristem.growth.plans.origins import Redrawn, Shards
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.tensor_plan import Drawn, TensorPlan, Term

ROUTER_STD = 0.02  # Komatsuzaki et al. 2022, arXiv:2212.05055
EXPERT = re.compile(r"(.*)\.experts\.(?:(?:expert_)?(\d+)\.)?(\w+?)(?:\.weight)?$")  # block, its number if apart, leaf
SHARED = re.compile(r"(.*)\.shared_expert\.(.+)$")
SHARED_GATE = re.compile(r"(.*)\.shared_expert_gate\.weight$")
ROUTER = re.compile(r"(.*)\.(?:gate|router|router\.classifier)\.weight$")


@dataclass(frozen=True)
class Experts:
    """The numbers of an upcycling.

    Args:
        scale: the factor of the output weights of experts.
        shared_scale: the factor of the output weights of a shared expert. 0 if it is silent.
        reinit: the share of an expert's units that is drawn again.
    """

    count: int
    per_token: int
    granularity: int
    zero_router: bool
    scale: float
    shared_scale: float
    reinit: float


@dataclass(frozen=True)
class UpcyclePlan(GrowthPlan):
    """A plan whose target is of another class."""

    row: Mixture | None = None
    experts: Experts | None = None

    @cached_property
    def tensors(self) -> dict[str, TensorPlan]:
        """As in `GrowthPlan`. Raises MeristemError if a tensor of one network does not belong to the
        other.
        """
        assert self.reached is not None
        plans = {tensor.name: self._plan(tensor) for tensor in self.reached.tensors.values() if tensor.tied_to is None}
        used = {term.source for plan in plans.values() for part in plan.parts for term in part.terms if not part.drawn}
        own = self.source.tensors
        lost = [name for name in own if name not in used and (own[name].tied_to or name) not in used]
        if lost:
            raise MeristemError(
                f"{self._class} has no place for {lost[0]} ({len(lost)} tensors of this {self.source.builder.model_type}); "
                "a network without them can be upcycled"
            )
        return plans

    @property
    def _class(self) -> str:
        return self.target.model_type

    def _plan(self, tensor: TensorAnatomy) -> TensorPlan:
        source = self.source.tensors.get(self._dense(tensor.name))
        if source is not None and source.shape == tensor.shape:
            plan = self._whole(tensor, source.tied_to or source.name)
            return replace(plan, further=source.tied_to is not None)  # the mixture does not tie it
        found = next((plan for explain in self._rules for plan in explain(tensor) if plan), None)
        if found is None:
            raise MeristemError(self._unexplained(tensor))
        return found

    def _unexplained(self, tensor: TensorAnatomy) -> str:
        dense, match = self.source.builder.model_type, EXPERT.match(tensor.name)
        blocks = self._feed_forward(match.group(1)) if match else {}
        if match is not None and blocks:
            return (
                f"experts of {self._class} have a matrix {match.group(3)}, which the feed-forward block of this {dense} lacks: it has "
                f"{', '.join(blocks)}; a {dense} whose block is made as an expert is can be upcycled"
            )
        return f"{tensor.name} {tuple(tensor.shape)} of {self._class} is not explained by any tensor of this {dense}"

    @property
    def _rules(self):
        return (self._expert, self._shared, self._shared_gate, self._router)

    def _whole(self, tensor: TensorAnatomy, source: str, scale: float = 1.0) -> TensorPlan:
        maps = (None,) * len(tensor.shape)
        return TensorPlan(tensor.name, (Term(source),), maps, tuple(d.role for d in tensor.dimensions), scale)

    def _dense(self, name: str) -> str:
        """Its name in the dense network."""
        assert self.row is not None
        here, there = (_base(builder) for builder in (self.target, self.source.builder))
        if here != there and name.startswith(f"{here}."):
            name = there + name.removeprefix(here)
        for dense, mixture in self.row.renamed.items():
            name = name.replace(mixture, dense)
        return name

    def _feed_forward(self, block: str) -> dict[str, TensorAnatomy]:
        """{leaf such as "up_proj": matrix} of the dense block whose place a block of experts takes."""
        prefix = self._dense(f"{block}.")
        return {
            name.removeprefix(prefix).removesuffix(".weight"): tensor
            for name, tensor in self.source.tensors.items()
            if name.startswith(prefix) and len(tensor.shape) == 2
        }

    def _expert(self, tensor: TensorAnatomy) -> Iterator[TensorPlan]:
        """Experts, fused in one tensor or each in its own. `gate_up_proj` is `gate_proj` followed by
        `up_proj`.
        """
        match, options = EXPERT.match(tensor.name), self.experts
        assert options is not None
        if match is None:
            return
        block, number, leaf = match.groups()
        dense = self._feed_forward(block)
        leaves = [leaf] if leaf in dense else [f"{part}_proj" for part in leaf.removesuffix("_proj").split("_")]
        if not all(name in dense for name in leaves):
            return
        parts = [self._experts_of(tensor, dense[name], block, number) for name in leaves]
        yield replace(parts[0], beside=tuple(parts[1:]), along=1)

    def _experts_of(self, tensor: TensorAnatomy, dense: TensorAnatomy, block: str, number: str | None) -> TensorPlan:
        """All experts of a block in one tensor, or one of them, with all units of the dense matrix."""
        options = self.experts
        assert options is not None
        inner, roles = self._inner(dense), tuple(d.role for d in dense.dimensions)
        plan = self._whole(tensor, dense.name, options.scale if roles[inner] == "read" else 1.0)
        plan = replace(plan, seed=self.seed)
        if number is not None:
            redrawn = Redrawn(options.reinit, None, inner, self.seed, f"{block} {number}") if options.reinit else None
            shared = UnitMap.select(torch.arange(dense.shape[0]), dense.shape[0], 1 / options.count)
            share = AxisMap(UnitMap.identity(dense.shape[0]), shared)  # of the tokens, and with them of the gradient
            return replace(plan, maps=(share, None), roles=("write", "fixed"), redrawn=redrawn, further=number != "0")
        copies = AxisMap.duplicate(torch.arange(options.count) % options.granularity, options.granularity)
        redrawn = Redrawn(options.reinit, 0, 1 + inner, self.seed, block) if options.reinit else None
        shards = Shards(inner, options.granularity)
        return replace(plan, maps=(copies, None, None), roles=("fixed", *roles), shards=shards, redrawn=redrawn)

    def _inner(self, dense: TensorAnatomy) -> int:
        """The dimension of a matrix that runs along feed-forward units."""
        return next(i for i, d in enumerate(dense.dimensions) if "hidden" not in str(d.layout))

    def _shared(self, tensor: TensorAnatomy) -> Iterator[TensorPlan]:
        """A shared expert is the dense block, or its first units if it is silent."""
        match, options = SHARED.match(tensor.name), self.experts
        assert options is not None
        if match is None:
            return
        dense = self._feed_forward(match.group(1)).get(match.group(2).removesuffix(".weight"))
        if dense is None:
            return
        inner = self._inner(dense)
        plan = self._whole(tensor, dense.name, options.shared_scale if dense.dimensions[inner].role == "read" else 1.0)
        if tensor.shape == dense.shape:
            yield plan
            return
        maps: list[AxisMap | None] = [None, None]
        maps[inner] = AxisMap.select(torch.arange(tensor.shape[inner]), dense.shape[inner])
        yield replace(plan, maps=tuple(maps), further=True)

    def _shared_gate(self, tensor: TensorAnatomy) -> Iterator[TensorPlan]:
        match = SHARED_GATE.match(tensor.name)
        if match is not None:
            yield self._from_nothing(tensor, match.group(1), 0.0)

    def _router(self, tensor: TensorAnatomy) -> Iterator[TensorPlan]:
        """New rows. The experts of one copy share theirs."""
        match, options = ROUTER.match(tensor.name), self.experts
        assert options is not None
        if match is not None and tensor.shape[0] == options.count:
            yield self._from_nothing(tensor, match.group(1), 0.0 if options.zero_router else ROUTER_STD)

    def _from_nothing(self, tensor: TensorAnatomy, block: str, std: float) -> TensorPlan:
        options = self.experts
        assert options is not None
        beside = next(iter(self._feed_forward(block).values()))
        drawn = Drawn(tensor.shape, std, options.granularity if std else 1)
        plan = self._whole(tensor, beside.name, scale=0.0)
        return replace(plan, drawn=drawn, seed=self.seed)


def _base(builder: Builder) -> str:
    """The name that a class with a head gives to the network below it."""
    made = getattr(builder, "model_class", None)
    return getattr(getattr(made, "func", made), "base_model_prefix", "")
