"""Weights or outputs that are not finite. They prove nothing, and say nothing about the anatomy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NoReturn

from torch import Tensor, nn

from meristem.anatomy.numbers import count_not_finite, unproved
from meristem.anatomy.streamed import is_streamed, weights_of, with_weights
from meristem.errors import MeristemError

NAMED = 3
LARGE = 1e6  # of a weight: none that was trained well is as large


def check_finite(model: nn.Module, outputs: Mapping[str, Tensor]) -> None:
    """Raises MeristemError for outputs that prove nothing: NaN, only infinities, or an infinity that comes
    from the weights.

    The cause is in the weights, which the message names, or in the inputs. (Minus infinity alone is the
    output of some classes for tokens that are not allowed.)

    Args:
        model: the network.
        outputs: {name: output of the network}.
    """
    broken = next(
        (n for n, o in outputs.items() if o.numel() and bool(o.isnan().any() or not o.isfinite().any())), None
    )
    infinite = any(bool(output.isinf().any()) for output in outputs.values())
    bad = _bad_weights(model) if broken is not None or infinite else {}
    if bad:
        raise unproved(_shown(bad))
    if broken is not None:
        raise MeristemError(
            f"the network's outputs are not finite on the inputs of the proof ({broken} is not a number), though its weights are; "
            f"{_cause(model)}"
        )


def check_weights(model: nn.Module) -> None:
    """Raises MeristemError for a network in memory with weights that are not finite. The proof of a streamed
    one looks at each weight when it takes it.
    """
    bad = {} if is_streamed(model) else _bad_weights(model)
    if bad:
        raise unproved(_shown(bad))


def with_finite_weights(model: nn.Module) -> nn.Module:
    """The same network, of which no parameter is taken that is not finite: of a streamed one each is looked
    at when it is made.

    Raises:
        MeristemError: naming the parameters of a network in memory; of a streamed one its weights raise, for
            the first that is taken.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    def check(name: str, tensor: Tensor) -> Tensor:
        count = count_not_finite(tensor) if name in parameters else 0
        return _refuse({name: count}) if count else tensor

    if is_streamed(model):
        return with_weights(model, check)
    bad = {name: count for name, count in _bad_weights(model).items() if name in parameters}
    if bad:
        _refuse(bad)
    return model


def _refuse(bad: Mapping[str, int]) -> NoReturn:
    raise MeristemError(
        f"the network's weights are not finite (NaN or infinite: {_shown(bad)}), and a network cut out of it would not be either; "
        "use an earlier checkpoint"
    )


def _shown(bad: Mapping[str, int]) -> str:
    more = f" and {len(bad) - NAMED} more tensors" if len(bad) > NAMED else ""
    return ", ".join(f"{count} in {name}" for name, count in list(bad.items())[:NAMED]) + more


def largest_weight(model: nn.Module) -> tuple[float, str]:
    """(magnitude, name) of the largest entry of all weights."""
    weights = _taken(model)
    sizes = ((float(w.detach().abs().max()), n) for n, w in weights if w.is_floating_point() and w.numel())
    return max(sizes, default=(0.0, "none"))


def _cause(model: nn.Module) -> str:
    """Why outputs of finite weights are not finite, as far as the network tells."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, float) and math.isnan(value):
                return f"{name}.{attribute} is not a number: correct the config's entry for it".lstrip(".")
    value, name = largest_weight(model)
    if value > LARGE:
        return f"its largest weight is {value:.1e} (in {name}): use a checkpoint from before they grew so large"
    return "pass inputs that it was made for (inputs=, --inputs)"


def _taken(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a network, by name, one at a time. A network of streamed ones has all of theirs."""
    for network in [part for part in model.modules() if is_streamed(part)] or [model]:
        weights = weights_of(network)
        yield from ((name, weights[name]) for name in weights)


def _bad_weights(model: nn.Module) -> dict[str, int]:
    """{tensor: how many of its values are not finite}, for the tensors that have such values."""
    counts = {name: count_not_finite(tensor) for name, tensor in _taken(model)}
    return {name: count for name, count in counts.items() if count}
