"""Sparse upcycling: a dense network becomes a mixture of experts, in the mixture class of its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy, Builder
from meristem.anatomy.huggingface import HuggingFaceBuilder
from meristem.anatomy.trace import Inputs
from meristem.anatomy.uninitialised import uninitialised
from meristem.errors import MeristemError, nearest
from meristem.growth.methods.method import Method, Weights
from meristem.growth.plans.mixtures import MIXTURES, Mixture
from meristem.growth.plans.upcycle_plan import Experts, UpcyclePlan
from meristem.growth.structure.differences import INERT

# Entries of a config that say what class it is of, and where it comes from.
OF_THE_SOURCE = ("model_type", "architectures", "transformers_version", "_name_or_path", "auto_map", "_commit_hash")
UNDECLARED = ("head_dim",)  # entries that classes read without declaring them (Qwen3-MoE)


@dataclass(frozen=True)
class Upcycle(Method):
    """Turn every feed-forward block into experts that are copies of it, with a new router that chooses among
    them.

    Komatsuzaki et al.: "Sparse Upcycling", ICLR 2023, arXiv:2212.05055 (copies and a new router). He et al.:
    "Upcycling Large Language Models into Mixture of Experts", arXiv:2410.07524 (granularity: shards of a
    copy, with equal rows of the router). Nakamura et al.: "Drop-Upcycling", ICLR 2025, arXiv:2502.19261
    (`reinit`).

    Keeps the function if a whole copy is chosen and the weights of the chosen experts are known. In classes
    whose top-k weights sum to one, that holds with any router. These are all classes of the table except
    Switch, unless `norm_topk_prob` is False. In other cases it holds with router="zero" and granularity 1.
    `reinit` changes the function by design, and the change is measured.

    Args:
        num_experts: how many experts each block has.
        experts_per_token: how many of them a token gets.
        granularity: the number G of shards of a dense block. Each expert is one shard, and each shard is in
            num_experts / G experts. `num_experts` and `experts_per_token` have to be multiples of G.
        router: "random" for normal numbers of standard deviation 0.02, or "zero". None means random where
            that is exact, and zero elsewhere.
        reinit: the share of each expert's units that is redrawn, with the mean and the standard deviation of
            their tensor.
        shared_experts: 0 or 1. With 1, in classes that have a shared expert, that expert is the dense block
            and gives half of the output (its gate is zero, and the sigmoid of that is a half). The others
            give the other half. With 0, the shared expert is silent.
        every: give experts only to every n-th layer, in classes whose config can say so.
        norm_topk_prob: whether the weights of the chosen experts sum to one, in classes where that is an
            option.
        fields: further entries of the mixture's config. They may change the function.
        seed: the seed of the router and of the redrawn units.

    Raises:
        MeristemError: if an option is out of range. When a network is grown, if its family has no mixture
            class, or if the class does not have an option.
    """

    name: ClassVar[str] = "upcycle"
    preserving: ClassVar[bool] = False
    num_experts: int = 8
    experts_per_token: int = 2
    granularity: int = 1
    router: Literal["random", "zero"] | None = None
    reinit: float = 0.0
    shared_experts: int = 0
    every: int = 1
    norm_topk_prob: bool | None = None
    fields: Mapping[str, Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {name: getattr(self, name) for name in ("num_experts", "experts_per_token", "granularity", "every")}
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MeristemError(f"upcycle: {name} must be a whole number of at least 1, got {value!r}")
        if self.experts_per_token > self.num_experts:
            raise MeristemError(
                f"upcycle: a token cannot get experts_per_token={self.experts_per_token} of num_experts={self.num_experts}; "
                f"at most {self.num_experts} would work"
            )
        for name in ("num_experts", "experts_per_token"):
            if counts[name] % self.granularity:
                raise MeristemError(
                    f"upcycle: {name}={counts[name]} is not a multiple of granularity={self.granularity}, so some copy would lack a "
                    f"shard; {name}={-(-counts[name] // self.granularity) * self.granularity} would work"
                )
        if not 0 <= self.reinit <= 1:
            raise MeristemError(f"upcycle: reinit is a share from 0 to 1, got {self.reinit}")
        if self.shared_experts not in (0, 1):
            raise MeristemError(f"upcycle: shared_experts is 0 or 1, got {self.shared_experts!r}")

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """No maps, because no axis changes. The class changes."""
        return {}

    def plan(self, anatomy: Anatomy, model: nn.Module, inputs: Inputs = None) -> UpcyclePlan:
        """As in `Method`. Raises MeristemError if the family has no mixture class, or if the class does not
        have an option.
        """
        row = self._row(anatomy)
        sums_to_one = self._sums_to_one(row)
        zero = self.router == "zero" or (self.router is None and not sums_to_one)
        scale = float(self.granularity)
        if not sums_to_one:
            scale *= self.num_experts / self.experts_per_token
        half = 0.5 if self.shared_experts else 1.0
        experts = Experts(
            self.num_experts, self.experts_per_token, self.granularity, zero, scale * half,
            1.0 if self.shared_experts else 0.0, self.reinit,
        )  # fmt: skip
        whole_copies = self.granularity == 1 or self.experts_per_token == self.num_experts
        exact = not self.reinit and (whole_copies if zero else sums_to_one)
        exact = exact and all(INERT.fullmatch(name) for name in self.fields or {})
        reached = Anatomy.of(self._mixture(anatomy.builder, row))
        return UpcyclePlan(
            source=anatomy,
            target=reached.builder,
            maps={},
            layers={},
            preserves_function=exact,
            seed=self.seed,
            reached=reached,
            row=row,
            experts=experts,
        )

    def target(self, anatomy: Anatomy, weights: Weights) -> Builder:
        """As in `Method`."""
        return Anatomy.of(self._mixture(anatomy.builder, self._row(anatomy))).builder

    def mixture(self, builder: HuggingFaceBuilder) -> HuggingFaceBuilder:
        """What builds the mixture that belongs to the dense network of `builder`."""
        made = self._mixture(builder, MIXTURES[builder.model_type])
        return HuggingFaceBuilder(type(made), made.config)

    def _row(self, anatomy: Anatomy) -> Mixture:
        """The row of the table for this family."""
        builder = anatomy.builder
        row = MIXTURES.get(builder.model_type)
        if row is None or not isinstance(builder, HuggingFaceBuilder):
            if anatomy.of_kind("experts"):
                raise MeristemError(
                    f"upcycle: {builder.model_type} is already a mixture of experts; more_experts adds experts to it"
                )
            known = ", ".join(f"{dense} ({row.model_type})" for dense, row in MIXTURES.items())
            raise MeristemError(f"upcycle: no mixture class is known for {builder.model_type}; known for {known}")
        self._check(anatomy, row)
        return row

    def _check(self, anatomy: Anatomy, row: Mixture) -> None:
        if self.shared_experts and not row.shared:
            raise MeristemError(f"upcycle: {row.model_type} has no shared experts; shared_experts=0 would work")
        if self.every > 1 and not (row.every or row.sparse_layers):
            raise MeristemError(f"upcycle: {row.model_type} has experts in every layer; every=1 would work")
        depth = max(anatomy.depths.values(), default=0)
        if self.every > depth:
            raise MeristemError(
                f"upcycle: every={self.every} leaves no layer with experts; there are {depth}, so every={depth} would work"
            )
        if not row.per_token and (self.experts_per_token != 1 or self.granularity != 1):
            raise MeristemError(
                f"upcycle: a token of {row.model_type} gets one expert; experts_per_token=1 and granularity=1 would work"
            )
        if self.norm_topk_prob is not None and row.normalises in ("always", "never"):
            does = "always" if row.normalises == "always" else "never"
            raise MeristemError(f"upcycle: the weights of {row.model_type} {does} sum to one; leave norm_topk_prob out")
        units = next((axis.size for axis in anatomy.axes.values() if axis.name == "ffn"), 0)
        if units % self.granularity:
            raise MeristemError(
                f"upcycle: granularity={self.granularity} does not divide the {units} feed-forward units; "
                f"{max(g for g in range(1, self.granularity + 1) if units % g == 0)} would"
            )

    def _sums_to_one(self, row: Mixture) -> bool:
        if row.normalises in ("always", "never"):
            return row.normalises == "always"
        return self.norm_topk_prob is not False

    def _mixture(self, builder: Builder, row: Mixture) -> nn.Module:
        """The mixture without weights. Its class has the head of the dense network, and its config has the
        entries that both configs know.
        """
        import transformers

        assert isinstance(builder, HuggingFaceBuilder)
        source = getattr(builder.model_class, "func", builder.model_class).__name__
        name = row.prefix[1] + source.removeprefix(row.prefix[0])
        model_class = getattr(transformers, name, None) if source.startswith(row.prefix[0]) else None
        if model_class is None:
            raise MeristemError(f"upcycle: there is no {name} for this {source}")
        config_class = model_class.config_class
        given, known = builder.config.to_dict(), config_class().to_dict()
        known = {*known, *UNDECLARED}
        strange = next((key for key in self.fields or {} if key not in {*known, *config_class.attribute_map}), None)
        if strange is not None:
            raise MeristemError(f"upcycle: {row.model_type} has no config entry {strange!r}; {nearest(strange, known)}")
        kept = {key: value for key, value in given.items() if key in known and key not in OF_THE_SOURCE}
        config = config_class(**{**kept, **self._fields(builder.config, row), **row.fields, **(self.fields or {})})
        with torch.device("meta"):
            return uninitialised(lambda: model_class(config))

    def _fields(self, config: Any, row: Mixture) -> dict[str, Any]:
        """The entries of the mixture's config about its experts."""
        dense = "d_ff" if row.ffn == "d_ff" else "intermediate_size"
        units = getattr(config, dense)
        fields: dict[str, Any] = {row.experts: self.num_experts, row.ffn: units // self.granularity}
        fields |= {ours: getattr(config, theirs) for ours, theirs in row.derived.items() if hasattr(config, theirs)}
        if row.per_token:
            fields[row.per_token] = self.experts_per_token
        if row.normalises not in ("always", "never"):
            fields[row.normalises] = self._sums_to_one(row)
        if row.shared:
            fields[row.shared] = units if self.shared_experts else units // self.granularity
        if row.every:
            fields[row.every] = self.every
        for sparse, every in row.sparse_layers.items():
            fields[sparse] = getattr(config, every) // self.every
        return fields
