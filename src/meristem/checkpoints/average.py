"""`meristem average`: the weighted mean of checkpoints of one run, tensor by tensor, instead of a decay of
the learning rate.

A weighted mean of checkpoints at a constant rate equals the result of a decaying rate on the same gradients
(WSM: Tian et al., arXiv:2507.17634; PMA: Li et al., arXiv:2505.12082). Steps before the oldest checkpoint
have full weight. A later step has the total weight of the checkpoints after it. So every shape of decay is a
set of weights. Equal weights are a linear decay over k - 1 intervals.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
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
from meristem.growth.structure.differences import differences_of_configs, shown
from meristem.growth.tensors.build import skeleton

UNRELATED = 0.1  # of the cosine between the weights of two networks


def averaged(models: Sequence[nn.Module], parts: Sequence[float]) -> nn.Module:
    """The weighted mean of streamed networks, which is streamed too.

    Each tensor is summed in float32 (float64 tensors in float64) when it is read. It has the dtype that it
    has in the last network.

    Raises:
        MeristemError: if the networks differ in class, config or shapes. The message names what differs.
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
        if not bool(total.isfinite().all()):
            raise MeristemError(f"the mean of {name} is not finite (NaN or infinite); use earlier checkpoints")
        return total.to(last.dtype)

    dtypes = {name: tensor.dtype for name, tensor in first.state_dict().items()}
    config = _config(models)
    made = streamed(skeleton(lambda: type(first)(config)), Weights(dtypes, mean))
    if getattr(first, "generation_config", None) is not None:
        made.generation_config = first.generation_config  # type: ignore[assignment]
    return made


def _config(models: Sequence[nn.Module]) -> Any:
    """The last network's config, with a head of its own if one of the networks has one: what a tied network
    computes an untied one can compute too, not the other way round.
    """
    config: Any = copy.deepcopy(models[-1].config)
    tied = [_ties(model.config) for model in models]
    if tied[-1] and not all(tied):
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False
    return config


def _ties(config: Any) -> bool:
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", getattr(config, "tie_word_embeddings", False)))


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
    """Write the weighted mean of model directories to `out`. Everything except the weights is copied from the
    last source.

    Weights in the mean are a decay of the learning rate (WSM, arXiv:2507.17634; PMA, arXiv:2505.12082). A
    warning says where a source's weights have nothing to do with the last one's (see `likeness`).

    Args:
        sources: at least two directories, hub names or results of `find_source`, with the oldest first.
        out: the directory to write.
        weights: "mean" (a linear decay), "1-sqrt" or "cosine" for the decay that they stand for, or one
            number for each source.
        overwrite: replace `out`, if `meristem` or `save_pretrained` wrote everything in it.
        trust_remote_code: run code that comes with the checkpoints.
        allow_differences: average models although their configs say that they compute differently, or their
            tokenizers give the same ids to different tokens. The result computes as the last one does.
        tell: a function that is called with what the last source holds that was left behind, and with the
            sources, the last one first.
        options: further options of `write_model`.

    Returns:
        The weight of each source. They sum to 1.

    Raises:
        MeristemError: if there are fewer than two sources, if they are not checkpoints of one network, if
            `weights` do not fit, or as `write_model`.
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
    _warn_of_other_runs(models, found)
    paths = [source.path for source in found]
    left = write_model(
        model, out, lambda: average_record(found, parts), paths[-1], overwrite, sources=paths,
        trust_remote_code=trust_remote_code, **options,
    )  # fmt: skip
    if tell is not None:
        tell(left, found[::-1])
    return parts


def likeness(model: nn.Module, other: nn.Module) -> float:
    """The median over matrices of the cosine between the two networks' weights: near 1 for neighbouring
    checkpoints of one run, near 0 for networks from different random numbers. At most 16 matrices are read,
    and a network without one is like every other.
    """
    one, two = weights_of(model), weights_of(other)
    matrices = [name for name, tensor in other.state_dict().items() if tensor.dim() > 1 and tensor.is_floating_point()]
    chosen = matrices[:: -(-len(matrices) // 16)] if matrices else []
    pairs = ((one[name].flatten().float(), two[name].flatten().float()) for name in chosen)
    return median([float(torch.cosine_similarity(*pair, dim=0)) for pair in pairs] or [1.0])


def _warn_of_other_runs(models: Sequence[nn.Module], found: Sequence[Source]) -> None:
    """Warn where networks' weights have nothing to do with the last one's."""
    alike = {str(source): likeness(model, models[-1]) for model, source in zip(models[:-1], found, strict=False)}
    others = {source: cosine for source, cosine in alike.items() if cosine < UNRELATED}
    if others:
        warnings.warn(
            f"{', '.join(others)} and {found[-1]} do not look like checkpoints of one run: the cosine between their weights is "
            f"{', '.join(f'{cosine:z.2f}' for cosine in others.values())} (the median over matrices). The mean of networks from different "
            "random numbers is usually worse than each of them; to combine them, see `meristem fuse`",
            stacklevel=3,
        )


def _check_configs(models: Sequence[nn.Module], found: Sequence[Source]) -> None:
    """Raises MeristemError if a network computes differently from the last one. The message names the
    entries.
    """
    for model, source in zip(models[:-1], found, strict=False):
        different = differences_of_configs(model.config, models[-1].config)
        if different:
            raise MeristemError(
                f"{source} and {found[-1]} compute differently ({shown(different)}); the average would run as the last does. Pass "
                "--allow-differences (allow_differences=True) to do that nevertheless"
            )
