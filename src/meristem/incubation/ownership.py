"""Which tensors belong to which module: its blocks', and what is used in front of or behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.anatomy.structure import BlockList
from meristem.anatomy.trace import run_watched
from meristem.incubation.division import Division


def lists_in_order(
    anatomy: Anatomy, model: nn.Module, inputs: Mapping[str, Tensor] | None = None
) -> tuple[BlockList, ...]:
    """The lists of blocks of a network, from input to output: as a run enters them."""
    if len(anatomy.blocks) == 1:
        return anatomy.blocks
    entered: list[str] = []

    def hooks() -> list:
        firsts = [(blocks.prefix, model.get_submodule(f"{blocks.prefix}.0")) for blocks in anatomy.blocks]
        return [block.register_forward_pre_hook(lambda *_, at=prefix: entered.append(at)) for prefix, block in firsts]

    run_watched(model, hooks, inputs)
    return tuple(sorted(anatomy.blocks, key=lambda blocks: entered.index(blocks.prefix)))


def owned(
    hybrid: nn.Module,
    prefixes: Sequence[str],
    division: Division,
    module: int,
    inputs: Mapping[str, Tensor] | None = None,
) -> set[str]:
    """The tensors of `module` in its hybrid, by name: its blocks'; for the first module of a stage, what stands in front of the stage
    (embeddings, a down-sampling layer); for the last of all, what stands behind the blocks (norm, head).

    Args:
        prefixes: of the lists of blocks, from input to output.
        inputs: for a run that shows what is used when; random ones by default.
    """
    stage = division.stage_of(module)
    blocks = tuple(f"{prefixes[stage]}.{layer}." for layer in division.in_hybrid(module))
    names = {name for name in hybrid.state_dict() if name.startswith(blocks)}
    around = outside(hybrid, prefixes, inputs)
    if module == division.of_stage(stage)[0]:
        names |= around[stage]
    if module == division.modules - 1:
        names |= around[-1]
    return names


def renumbered(name: str, prefix: str, place: Callable[[int], int]) -> str:
    """The name of a tensor whose block moves to `place(block)`; unchanged outside of this list of blocks."""
    if not _within(name, prefix):
        return name
    layer, _, rest = name.removeprefix(f"{prefix}.").partition(".")
    return f"{prefix}.{place(int(layer))}.{rest}"


def outside(model: nn.Module, prefixes: Sequence[str], inputs: Mapping[str, Tensor] | None = None) -> list[set[str]]:
    """The tensors outside of all blocks, by when a run uses them: in front of each list of blocks, and at last behind all.

    What is used at several of these places, such as a tied embedding, or in between the blocks of a list, is in none; what no
    layer's call announces (it is a parameter of the network itself) is in the first.
    """
    paths = {module: path for path, module in model.named_modules()}
    order: list[str] = []
    owners = [m for m in model.modules() if _has_tensors(m)]
    run_watched(
        model, lambda: [m.register_forward_pre_hook(lambda m, _: order.append(paths[m])) for m in owners], inputs
    )
    lists = [next((i for i, prefix in enumerate(prefixes) if _within(path, prefix)), None) for path in order]
    first = [lists.index(i) if i in lists else len(lists) for i in range(len(prefixes))] + [len(lists)]
    last = [-1] + [len(lists) - 1 - lists[::-1].index(i) if i in lists else -1 for i in range(len(prefixes))]
    state = {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}
    places: dict[int, set[int | None]] = {}
    found: list[set[str]] = [set() for _ in first]
    for moment, path in enumerate(order):
        if lists[moment] is not None:
            continue
        place = next((i for i in range(len(first)) if last[i] < moment < first[i]), None)
        for name in (n for n in state if n.rpartition(".")[0] == path):
            places.setdefault(state[name], set()).add(place)
            if place is not None:
                found[place].add(name)
    used = {name for name in state if state[name] in places}
    found[0] |= {name for name in state if name not in used and not any(_within(name, p) for p in prefixes)}
    return [{name for name in names if len(places.get(state[name], ())) <= 1} for names in found]


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))


def _within(path: str, prefix: str) -> bool:
    return path.startswith(prefix + ".")
