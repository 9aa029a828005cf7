"""What shapes cannot show and one forward pass can: which norm feeds the head, and whether blocks end in a
norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.inputs import example_inputs, logits_of
from meristem.anatomy.modes import evaluating, step_by_step
from meristem.anatomy.norms import is_norm, is_plain_norm
from meristem.errors import MeristemError, first_line

Inputs = Mapping[str, Any] | None  # keyword arguments of forward; None: random ones


def norm_before_head(model: nn.Module, inputs: Inputs = None, otherwise: str = "") -> str | None:
    """The name of the last norm called before the output head, or None if the model has no such pair.

    The head is transformers' `get_output_embeddings()`. If that gives none, it is the module at the path
    `otherwise`. The model runs on `inputs`, or on one short random input.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    head = model.get_submodule(otherwise) if head is None and otherwise else head
    if head is None:
        return None
    names = {module: name for name, module in model.named_modules()}
    called: list[nn.Module] = []
    watched = [module for module in names if module is head or is_norm(module) or is_plain_norm(module)]
    run_watched(
        model,
        lambda: [m.register_forward_pre_hook(lambda module, _: called.append(module)) for m in watched],
        inputs,
    )
    before = called[: called.index(head)] if head in called else []
    return names[before[-1]] if before else None


@dataclass(frozen=True)
class NormUse:
    """What a norm of the stream measures in a pass.

    Attributes:
        least: the smallest mean square that it measures where its output is the output of a block (the
            variance, for norms that subtract the mean).
        again: whether the block also uses it in another place, as XMOD does before its adapters.
    """

    least: float
    again: bool


def stream_norms(
    model: nn.Module, norms: Iterable[str], block_prefixes: list[str], inputs: Inputs = None
) -> dict[str, NormUse]:
    """The norms whose output is the output of a block (post-norm, as in BERT).

    Args:
        model: the network.
        norms: the paths of the norms to check.
        block_prefixes: the paths of the lists of blocks.
        inputs: keyword arguments of forward. One short random input by default.

    Raises:
        MeristemError: if the inputs of the model cannot be guessed.
    """
    blocks = [block for prefix in block_prefixes for block in model.get_submodule(prefix).children()]
    watched = {model.get_submodule(path): path for path in norms}
    given: dict[int, tuple[str, float, Tensor]] = {}
    found: dict[str, float] = {}
    uses, ends = Counter[str](), Counter[str]()

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        if module in watched and args:
            uses[watched[module]] += 1
            x = args[0].float()
            least = float(min(x.var(-1, correction=0).min(), x.square().mean(-1).min()))
            given[id(output)] = (watched[module], least, output)  # the tensor is kept, and with it its id
        elif module in blocks:
            first = output[0] if isinstance(output, tuple | list) else output
            if id(first) in given:
                path, least, _ = given[id(first)]
                found[path] = min(found.get(path, least), least)
                ends[path] += 1

    run_watched(model, lambda: [m.register_forward_hook(keep) for m in (*watched, *blocks)], inputs)
    return {path: NormUse(least, uses[path] > ends[path]) for path, least in found.items()}


def blocks_pass_through(
    model: nn.Module,
    muted: nn.Module,
    block_prefixes: list[str],
    inputs: Inputs = None,
    prepared: Callable[[Tensor], Tensor] = lambda stream: stream,
) -> bool:
    """Whether the output of every block of `muted` equals its input, on the inputs of the blocks of `model`
    after `prepared`.

    The model runs on `inputs`, or on one short random input. True if inputs cannot be guessed, which leaves
    the decision to the certificate. False for blocks that cannot be watched. Blocks that change the shape are
    not judged, unless all do.
    """
    names = [
        f"{prefix}.{name}" for prefix in block_prefixes for name, _ in model.get_submodule(prefix).named_children()
    ]
    calls: list[tuple[str, tuple, dict, Any]] = []

    def keep(name: str):
        return lambda _, args, kwargs, output: calls.append((name, args, kwargs, output))

    def hooks() -> list:
        return [model.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True) for name in names]

    try:
        run_watched(model, hooks, inputs)
    except MeristemError:
        return True
    # run only now: while `model` runs, transformers collects the output of every block (output_hidden_states)
    unchanged = [
        _passes_through(muted.get_submodule(name), args, kwargs, usual, prepared) for name, args, kwargs, usual in calls
    ]
    judged = [verdict for verdict in unchanged if verdict is not None]
    return bool(judged) and all(judged)


def _passes_through(
    block: nn.Module, args: tuple, kwargs: dict, usual: Any, prepared: Callable[[Tensor], Tensor]
) -> bool | None:
    """Whether the output of a block equals its input. None if its input has no features, or if its `usual`
    output has another shape. False if it cannot run separately.
    """
    own = None if args else next((k for k in kwargs if k.startswith("hidden")), None)
    before: Any = args[0] if args else kwargs.get(own or "")
    if not isinstance(before, Tensor) or not before.is_floating_point():
        return None
    if isinstance(usual, Tensor) and usual.shape != before.shape:
        return None
    before = prepared(before)
    args, kwargs = ((before, *args[1:]), kwargs) if own is None else (args, {**kwargs, own: before})
    args = tuple(None if hasattr(arg, "get_seq_length") else arg for arg in args)  # T5Gemma's cache has no name
    caches = {k: None for k, v in kwargs.items() if k.startswith("past_key_value") or hasattr(v, "get_seq_length")}
    try:
        with torch.no_grad(), evaluating(block):
            output = block(*args, **{**kwargs, **caches})
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError):  # a block that needs its cache
        return False
    output = tuple(output.values()) if isinstance(output, dict) else output
    after: Any = output[0] if isinstance(output, tuple | list) else output
    return before.shape == after.shape and torch.allclose(before, after, rtol=1e-3, atol=1e-5)


def run_watched(model: nn.Module, hooks: Callable[[], Iterable], inputs: Inputs = None) -> None:
    """One pass in evaluation mode on `inputs` (one short random input by default). Afterwards the hooks are
    removed and the mode is restored.

    Args:
        model: the network.
        hooks: a function that registers hooks and returns their handles. It is called when the inputs are
            known, because guessing them runs the model.
        inputs: keyword arguments of forward.

    Raises:
        MeristemError: if there are no inputs and none can be guessed, or if the network does not run on the
            given ones.
    """
    chosen = dict(inputs) if inputs is not None else example_inputs(model, batch_size=1, sequence_length=16)
    handles = list(hooks())
    try:
        with evaluating(model), step_by_step():
            logits_of(model, chosen)
    except (RuntimeError, LookupError, TypeError) as error:
        if inputs is None:
            raise
        raise MeristemError(
            f"{type(model).__name__} does not run on these inputs ({', '.join(chosen)}): {first_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
