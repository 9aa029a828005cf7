"""Which tensors belong to which module: those of its blocks, and those used before or after them."""

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
    """The lists of blocks of a network, in the order in which a run enters them."""
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
    """The names of the tensors of `module` in its hybrid: those of its blocks; for the first module of a
    stage, what comes before the stage (embeddings, a down-sampling layer); for the last module of all,
    what follows the blocks (norm, head).

    Args:
        hybrid: the hybrid.
        prefixes: the paths of the lists of blocks, from input to output.
        division: the division of the large network.
        module: the number of the module.
        inputs: keyword arguments for a run that shows when each tensor is used. Random ones by default.
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
    """The name of a tensor whose block moves to `place(block)`. Names outside this list of blocks do not
    change.
    """
    if not _within(name, prefix):
        return name
    layer, _, rest = name.removeprefix(f"{prefix}.").partition(".")
    return f"{prefix}.{place(int(layer))}.{rest}"


def outside(model: nn.Module, prefixes: Sequence[str], inputs: Mapping[str, Tensor] | None = None) -> list[set[str]]:
    """The tensors outside all blocks, by when a run uses them: before each list of blocks, and last, after
    all of them.

    Tensors that are used at several of these places, such as a tied embedding, or between the blocks of a
    list, are in none. Parameters that belong to no layer, but to the network itself, are in the first.
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
