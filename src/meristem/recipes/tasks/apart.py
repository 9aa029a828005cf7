"""Checks of the attention of a network. They are measurements, since a class may accept positions or a mask
and ignore them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from meristem.data.denoisers import prefix_mask
from meristem.errors import MeristemError, first_line

LENGTH = 8  # tokens of each of two documents
TOLERANCE = 1e-5  # of the largest logit, rounding
SHARE = 1e-2  # of the effect of the first document on the second when nothing separates them


@torch.no_grad()
def check_documents_apart(model: nn.Module, label: str) -> None:
    """Run two documents in one sequence, and the second alone. Their logits must agree.

    Raises:
        MeristemError: if they do not, or if the class takes no `position_ids`.
    """
    said = f"{label}: {type(model).__name__} does not keep the documents of a sequence apart"
    tokens = _tokens(model)
    places = torch.arange(LENGTH, device=tokens.device)[None]
    with _judged(model, said, "documents: across"):
        both = _logits(model, tokens, position_ids=torch.cat([places, places], 1))[:, LENGTH:]
        alone = _logits(model, tokens[:, LENGTH:], position_ids=places)
        across = _logits(model, tokens, position_ids=torch.arange(2 * LENGTH, device=tokens.device)[None])[:, LENGTH:]
    gap, without = _gap(both, alone), _gap(across, alone)
    if not gap <= max(TOLERANCE, SHARE * without):
        raise MeristemError(
            f"{said} when positions restart with each document (logits differ by {gap:.1e}); use documents: across"
        )


@torch.no_grad()
def check_prefix_is_seen(model: nn.Module, label: str) -> None:
    """Change the last token of a prefix, and a token after it. The earlier tokens must depend on the first
    and not on the second.

    Raises:
        MeristemError: if they do not, or if the class takes no such mask.
    """
    said = f"{label}: {type(model).__name__} does not read a prefix in both directions"
    tokens = _tokens(model)
    mask = prefix_mask(2 * LENGTH, LENGTH).to(tokens.device)[None]
    with _judged(model, said, "an encoder-decoder, or another objective"):
        plain, *changed = (_logits(model, other, attention_mask=mask) for other in (
            tokens, *(_changed(tokens, place) for place in (LENGTH - 1, LENGTH + 2)),
        ))  # fmt: skip
    seen, unseen = (
        _gap(changed[0][:, : LENGTH - 1], plain[:, : LENGTH - 1]),
        _gap(changed[1][:, : LENGTH + 2], plain[:, : LENGTH + 2]),
    )
    if not (seen > TOLERANCE and unseen <= max(TOLERANCE, SHARE * seen)):
        raise MeristemError(
            f"{said}: a change of its last token moves earlier logits by {seen:.1e}, and a change of a later token by {unseen:.1e}; use an "
            "encoder-decoder, or another objective"
        )


def _tokens(model: Any) -> torch.Tensor:
    """Token ids (1, 2 * LENGTH) from the network's vocabulary."""
    vocabulary, device = model.get_input_embeddings().weight.shape[0], next(model.parameters()).device
    return (torch.arange(2 * LENGTH, device=device) * 7 + 3)[None] % vocabulary


def _changed(tokens: torch.Tensor, place: int) -> torch.Tensor:
    other = tokens.clone()
    other[0, place] = tokens[0, place - 1]
    return other


@contextlib.contextmanager
def _judged(model: nn.Module, said: str, instead: str) -> Iterator[None]:
    """Evaluation mode. Errors of a class that does not take these inputs become one sentence.

    Raises:
        MeristemError: if the class does not take them.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise MeristemError(f"{said} ({first_line(error)}); use {instead}") from error
    finally:
        for module, training in modes.items():
            module.training = training


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))


def _logits(model: Any, tokens: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, use_cache=False, **more).logits.float()
