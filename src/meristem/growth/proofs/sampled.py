"""A proof at the cost of a few blocks: only some blocks of both networks run, and every tensor is checked
separately.

A growth that keeps the function keeps it block by block. So the small network with only some blocks, and the
large one with only the blocks that were made from these, are also a small and a large network: embeddings,
the blocks, the last norm and the head, as they are stored. The other blocks are checked tensor by tensor. If
W' was made from W by the maps of its dimensions, the dual maps give it back, read^T W' write = scale . W,
whatever noise it contains.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meristem.algebra import UnitMap
from meristem.anatomy import Anatomy
from meristem.anatomy.numbers import check_numbers
from meristem.errors import MeristemError, PreservationError
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.tensor_plan import TensorPlan
from meristem.growth.proofs.block_kinds import kinds_of

ROWS = 4  # of each piece of a tensor that are taken back
Kept = dict[str, list[int]]  # {path of a list of blocks: those that run}


def choose_blocks(model: nn.Module, anatomy: Anatomy, count: int, seed: int = 0) -> Kept:
    """`count` blocks of each list: the first, the last, and others at random. Blocks that are built otherwise
    than these are added, one of each kind (see `kinds_of`).

    Raises:
        MeristemError: if `count` is less than two, or if the network has no blocks.
    """
    check_count(count)
    if not anatomy.blocks:
        raise MeristemError(
            f"this {anatomy.builder.model_type} has no list of blocks to take a sample of; prove it whole"
        )
    kept = {}
    for blocks in anatomy.blocks:
        order = torch.randperm(
            blocks.length, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {blocks.prefix}".encode()))
        )
        inner = [i for i in order.tolist() if i not in (0, blocks.length - 1)]
        chosen = {0, blocks.length - 1, *inner[: count - 2]}
        kinds = kinds_of(list(model.get_submodule(blocks.prefix).children()))
        seen = {kinds[i] for i in chosen}
        for number, kind in enumerate(kinds):
            if kind not in seen:
                chosen.add(number)
                seen.add(kind)
        kept[blocks.prefix] = sorted(chosen)
    return kept


def check_count(count: int) -> None:
    """Raises MeristemError if so few blocks make no sample."""
    if count < 2:
        raise MeristemError(
            f"a sampled proof runs at least the first and the last block, so sample must be at least 2; got {count}"
        )


def grown_blocks(plans: Sequence[GrowthPlan], kept: Kept) -> Kept:
    """The blocks of the large network that were made from these."""
    for plan in plans:
        lists = {block.prefix: block.axis for block in plan.source.blocks}
        kept = {
            prefix: [n for n, layer in enumerate(plan.layers[lists[prefix]]) if layer.sources[0][0] in chosen]
            if lists[prefix] in plan.layers
            else chosen
            for prefix, chosen in kept.items()
        }
    return kept


def only(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy of `model` whose lists of blocks run only those in `kept`. The others return their input."""
    model = copy.deepcopy(model)
    for prefix, chosen in kept.items():
        blocks, shape = model.get_submodule(prefix), _Returned()
        for number, block in list(blocks.named_children()):
            if int(number) in chosen:
                block.register_forward_hook(shape.remember)
            else:
                setattr(blocks, number, _Skipped(block, shape))
    return model


class _Returned:
    """What the last block that ran returned after its hidden states."""

    def __init__(self) -> None:
        self.extras: tuple[Any, ...] | None = None

    def remember(self, _: nn.Module, __: tuple, output: Any) -> None:
        self.extras = None if isinstance(output, Tensor) else tuple(output[1:])


class _Skipped(nn.Module):
    """Replaces a block. It has the attributes of the block, for networks that read them."""

    def __init__(self, block: nn.Module, shape: _Returned) -> None:
        super().__init__()
        self.__dict__["_block"], self.__dict__["_shape"] = block, shape

    def __getattr__(self, name: str) -> Any:
        block = self.__dict__.get("_block")
        if block is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(block, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden, extras = args[0] if args else kwargs["hidden_states"], self.__dict__["_shape"].extras
        return hidden if extras is None else (hidden, *extras)


def look(plan: TensorPlan, sources: Mapping[str, Tensor], where: int | tuple[int, int] | None, made: Tensor) -> None:
    """Check some rows of a weight when it is computed.

    Args:
        plan: the plan of the tensor.
        sources: the whole tensors from which it is computed.
        where: the old row with which `made` begins, if it consists of old rows with their columns in all new
            places; (first, last) if `made` is these rows of the new tensor; None if `made` is the whole
            weight.
        made: the computed rows.

    Raises:
        MeristemError: if a number of the weight is NaN or infinite.
        PreservationError: if the dual maps do not give back the rows of the source.
    """
    check_numbers(plan.name, made)
    if not checkable(plan) or not made.numel() or not made.is_floating_point():
        return
    unit_map = plan.unit_map(0)
    if isinstance(where, tuple):
        index = _some(len(made))
        new = where[0] + index
        old = new if unit_map is None or unit_map.index is None else unit_map.index[new]
        factor = None if unit_map is None or unit_map.coefficient is None else unit_map.coefficient[new]
        rows = made[index].double()
        _compare(plan, _rows_of(sources, old), rows, rows.abs(), factor, made.dtype)
    elif where is not None:
        index, first = _some(len(made)), where
        factor = None if unit_map is None or unit_map.source_factor is None else unit_map.source_factor[first + index]
        rows = made[index].double()
        _compare(plan, _rows_of(sources, first + index), rows, rows.abs(), factor, made.dtype)
    elif made.dim() < 2 or plan.offset:
        back, spread = _back(plan, made.double() + plan.offset, made.double().abs() + abs(plan.offset), [0])
        _compare(plan, sources, back, spread, None, made.dtype)
    else:
        old = len(next(iter(sources.values())))
        index, dual = _some(old), plan.unit_map(0, dual=True)
        if dual is None or dual.index is None or dual.coefficient is None:
            rows = made[index].double()
            _compare(plan, _rows_of(sources, index), rows, rows.abs(), None, made.dtype)
            return
        new = torch.nonzero(torch.isin(dual.index, index) & (dual.coefficient != 0)).flatten()
        places = torch.searchsorted(index, dual.index[new])
        weighted = made[new].double() * dual.coefficient[new].to(made.device).view(-1, *[1] * (made.dim() - 1))
        empty = weighted.new_zeros(len(index), *made.shape[1:])
        back, spread = (empty.index_add(0, places.to(made.device), part) for part in (weighted, weighted.abs()))
        _compare(plan, _rows_of(sources, index), back, spread, None, made.dtype)


def _some(rows: int) -> Tensor:
    """The numbers of `ROWS` rows, with the first and the last."""
    return torch.tensor(sorted({round(i * (rows - 1) / (ROWS - 1)) for i in range(ROWS)}), dtype=torch.long)


def _rows_of(sources: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in sources.items()}


def checkable(plan: TensorPlan) -> bool:
    """Whether the dual maps invert its maps, so that the weight can be computed back."""
    alone = all(isinstance(term.weight, float | int) and term.part == "all" for term in plan.terms)
    pairs = ((plan.unit_map(d), plan.unit_map(d, dual=True)) for d in range(len(plan.maps)))
    more = plan.perturb or plan.beside or plan.drawn or plan.shards or plan.redrawn
    return alone and not more and all(m is None or (u is not None and _undone(m, u)) for m, u in pairs)


def _undone(unit_map: UnitMap, dual: UnitMap) -> bool:
    """Whether dual^T . map is the identity."""
    a, b = unit_map, dual
    if a.index is None or b.index is None or a.coefficient is None or b.coefficient is None:
        return False
    together = a.coefficient * b.coefficient
    if bool(((together != 0) & (a.index != b.index)).any()):
        return False
    sums = torch.zeros(a.old_size, dtype=torch.float64).index_add_(0, a.index, together)
    return bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-9))


def _back(plan: TensorPlan, made: Tensor, spread: Tensor, dimensions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`made` computed back along these dimensions, and the sum of the absolute values that were added for
    each entry.
    """
    for dimension in dimensions:
        dual = plan.unit_map(dimension, dual=True)
        if dual is not None and made.dim():
            made, spread = dual.transposed_apply(made, dimension), dual.absolute().transposed_apply(spread, dimension)
    return made, spread


def _compare(
    plan: TensorPlan,
    sources: Mapping[str, Tensor],
    back: Tensor,
    spread: Tensor,
    factor: Tensor | None,
    stored: torch.dtype,
) -> None:
    """Compare `back`, which is computed back along dimension 0 except for `factor`, by which its rows were
    multiplied.
    """
    back, spread = _back(plan, back, spread, range(1, back.dim()))
    expected = torch.zeros_like(back)
    for term in plan.terms:
        expected += sources[term.source].double() * float(term.weight)
    if factor is not None:
        expected *= factor.to(back.device).view(-1, *[1] * (back.dim() - 1))
    heard: Tensor | float = 0.0
    if plan.offset:  # it is not mapped, but each new unit has it
        ones = torch.ones(_new_shape(plan, back), dtype=torch.float64, device=back.device)
        heard = _back(plan, ones, ones, [0])[0]
    expected = (expected + plan.offset * heard) * plan.scale
    allowed = 4 * torch.finfo(stored).eps * float(spread.max()) + torch.finfo(stored).tiny
    worst = float((back - expected).abs().max())
    if not worst <= allowed:
        raise PreservationError(
            f"{plan.name} is wrong: taken back by the dual maps, it differs from {plan.terms[0].source} by "
            f"{worst:.1e}, where rounding allows {allowed:.1e}"
        )


def _new_shape(plan: TensorPlan, back: Tensor) -> list[int]:
    """The shape of the vector that `back` was (gains are vectors)."""
    unit_map = plan.unit_map(0)
    return [unit_map.new_size if unit_map is not None else len(back), *back.shape[1:]]


def check_tensors(plan: GrowthPlan, small: Mapping[str, Tensor], big: Mapping[str, Tensor]) -> int:
    """Check every tensor of `big` against those of `small`. Returns how many could be computed back.

    Raises:
        MeristemError: if a number in `big` is NaN or infinite.
        PreservationError: if a tensor differs. The message names the first one.
    """
    checked = 0
    for name, tensor_plan in plan.tensors.items():
        if not checkable(tensor_plan):
            check_numbers(name, big[name])
        else:
            look(tensor_plan, {term.source: small[term.source] for term in tensor_plan.terms}, None, big[name])
            checked += 1
    return checked
