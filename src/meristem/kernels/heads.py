"""The layers that compute the answer of a network. They have one kernel."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from meristem.anatomy.inputs import example_inputs, logits_of
from meristem.anatomy.modes import evaluating
from meristem.errors import MeristemError


def output_heads(model: nn.Module) -> set[nn.Module]:
    """The output layers of a network, which keep one kernel.

    For a language model these are the output embeddings. For other transformers models (a classifier) they
    are the layer whose output is the logits, and linear layers outside all lists with one output for each
    label. The set is empty for other networks, because only their user knows the head.
    """
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if head is not None:
        return {head}
    if not hasattr(model, "config"):
        return set()
    labels = getattr(model.config, "num_labels", None)
    found: set[nn.Module] = {
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == labels
        and not any(part.isdigit() for part in path.split("."))
    }
    return found | _giving_the_logits(model)


def _giving_the_logits(model: nn.Module) -> set[nn.Module]:
    """The layer whose output is the logits, found by one run on short random inputs. Empty if the inputs
    cannot be guessed.
    """
    outputs: list[tuple[nn.Module, Any]] = []
    try:
        inputs = example_inputs(model, batch_size=1, sequence_length=8)
    except MeristemError:
        return set()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [
        layer.register_forward_hook(lambda layer, _, output: outputs.append((layer, output))) for layer in layers
    ]
    try:
        with evaluating(model):
            logits = logits_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    same = lambda output: isinstance(output, Tensor) and output.data_ptr() == logits.data_ptr()  # noqa: E731
    return {layer for layer, output in outputs if same(output) and output.numel() == logits.numel()}
