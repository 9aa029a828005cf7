"""Whether a network keeps the documents of a sequence apart: measured, since a class may take positions and do nothing with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from meristem.errors import MeristemError, first_line

LENGTH = 8  # tokens of each of two documents
TOLERANCE = 1e-5  # of the largest logit, rounding
SHARE = 1e-2  # of what the first document does to the second where nothing keeps them apart


@torch.no_grad()
def check_documents_apart(model: nn.Module, label: str) -> None:
    """Run two documents in one sequence, and the second alone; their logits have to agree.

    Raises:
        MeristemError: if they do not, or if the class takes no `position_ids`.
    """
    said = f"{label}: {type(model).__name__} does not keep the documents of a sequence apart"
    modes, device = {module: module.training for module in model.modules()}, next(model.parameters()).device
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    tokens = (torch.arange(2 * LENGTH, device=device) * 7 + 3)[None] % vocabulary
    places = torch.arange(LENGTH, device=device)[None]
    try:
        model.eval()
        both = _logits(model, tokens, torch.cat([places, places], 1))[:, LENGTH:]
        alone = _logits(model, tokens[:, LENGTH:], places)
        across = _logits(model, tokens, torch.arange(2 * LENGTH, device=device)[None])[:, LENGTH:]
    except (TypeError, ValueError, RuntimeError) as error:
        raise MeristemError(f"{said} ({first_line(error)}); use documents: across") from error
    finally:
        for module, training in modes.items():
            module.training = training
    largest = alone.abs().max().clamp_min(1e-12)
    gap, without = (float((logits - alone).abs().max() / largest) for logits in (both, across))
    if not gap <= max(TOLERANCE, SHARE * without):
        raise MeristemError(
            f"{said} when their positions begin anew (logits differ by {gap:.1e}); use documents: across"
        )


def _logits(model: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, position_ids=positions, use_cache=False).logits.float()
