"""`meristem average`: checkpoints of one run averaged, tensor by tensor, in place of a decay of the learning rate.

A weighted mean of checkpoints that a constant rate has left is what a decaying rate would have made of the same gradients (WSM: Tian et
al., arXiv:2507.17634; PMA: Li et al., arXiv:2505.12082): the steps before the oldest count whole, those behind it fall with what the
younger checkpoints weigh together. So a shape of decay is a set of weights: equal ones are a linear decay over k - 1 intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.streamed import Weights, streamed, weights_of
from meristem.checkpoints.decay_weights import shares
from meristem.checkpoints.open_streamed import open_streamed
from meristem.checkpoints.record import average_record
from meristem.checkpoints.source import Source
from meristem.checkpoints.write import write_model
from meristem.errors import MeristemError
from meristem.growth.build import skeleton
from meristem.growth.differences import differences_of_configs, shown


def averaged(models: Sequence[nn.Module], parts: Sequence[float]) -> nn.Module:
    """The weighted mean of streamed networks, streamed itself: each tensor is summed in float32 (float64 of float64) when it is asked for,
    and has the dtype of the last network's.

    Raises:
        MeristemError: if they are not of one class, config and shapes, naming what differs.
    """
    first = models[-1]
    sources = [weights_of(model) for model in models]
    shapes = [{name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} for model in models]
    for other, model in zip(shapes, models, strict=True):
        if type(model) is not type(first):
            raise MeristemError(f"a {type(model).__name__} and a {type(first).__name__} cannot be averaged")
        different = next((name for name in {**shapes[-1], **other} if other.get(name) != shapes[-1].get(name)), None)
        if different is not None:
            raise MeristemError(
                f"{different} is {other.get(different, 'missing')} in one of the checkpoints and "
                f"{shapes[-1].get(different, 'missing')} in the last; checkpoints of one network can be averaged"
            )

    def mean(name: str) -> Tensor:
        last = sources[-1][name]
        if not last.is_floating_point():
            return last  # a count, such as the batches that a batch norm has seen
        wide = torch.float64 if last.dtype == torch.float64 else torch.float32
        total = torch.zeros_like(last, dtype=wide)
        for source, part in zip(sources, parts, strict=True):
            if part:
                total += source[name].to(wide) * part
        if bool(total.isnan().any()):
            raise MeristemError(f"the mean of {name} is not a number; use checkpoints from before their weights were")
        return total.to(last.dtype)

    dtypes = {name: tensor.dtype for name, tensor in first.state_dict().items()}
    config: Any = first.config
    made = streamed(skeleton(lambda: type(first)(config)), Weights(dtypes, mean))
    if getattr(first, "generation_config", None) is not None:
        made.generation_config = first.generation_config  # type: ignore[assignment]
    return made


def average(
    sources: Sequence[str | Source],
    out: Path,
    weights: str | Sequence[float] = "mean",
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    allow_differences: bool = False,
    tell: Callable[[Sequence[str], Sequence[Source]], object] | None = None,
    **options: Any,
) -> list[float]:
    """Write the weighted mean of model directories, the oldest first, to `out`; what is no weight is the last one's.

    Args:
        weights: as in `shares`.
        allow_differences: average models whose configs say that they compute differently, all as the last does, or whose tokenizers read
            other tokens by the same ids.
        tell: called with what the last one holds that was left behind, and with what the sources are, the last one first.
        options: further ones of `write_model`.

    Returns:
        What each counts.

    Raises:
        MeristemError: for fewer than two, checkpoints that are not of one network, or as `write_model`.
    """
    from meristem.checkpoints.source import find_source
    from meristem.checkpoints.vocabularies import check_same_tokens

    if len(sources) < 2:
        raise MeristemError(f"an average needs at least two checkpoints, got {len(sources)}")
    parts = shares(len(sources), weights)
    found = [find_source(source, trust_remote_code) if isinstance(source, str) else source for source in sources]
    if not allow_differences:
        check_same_tokens(found, "averaged")
    models = [open_streamed(source, trust_remote_code) for source in found]
    model = averaged(models, parts)
    if not allow_differences:
        _check_configs(models, found)
    paths = [source.path for source in found]
    left = write_model(
        model, out, lambda: average_record(found, parts), paths[-1], overwrite, sources=paths,
        trust_remote_code=trust_remote_code, **options,
    )  # fmt: skip
    if tell is not None:
        tell(left, found[::-1])
    return parts


def _check_configs(models: Sequence[nn.Module], found: Sequence[Source]) -> None:
    """Raises MeristemError, naming the entries, if a network computes otherwise than the last."""
    for model, source in zip(models[:-1], found, strict=False):
        different = differences_of_configs(model.config, models[-1].config)
        if different:
            raise MeristemError(
                f"{source} and {found[-1]} compute differently ({shown(different)}); averaged, both would run as the last does. Pass "
                "--allow-differences (allow_differences=True) to do that nevertheless"
            )
