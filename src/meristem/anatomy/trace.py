"""What shapes cannot show and one forward pass can: which norm feeds the output head."""

from __future__ import annotations

from torch import nn

from meristem.anatomy.inputs import example_inputs, logits_of
from meristem.anatomy.norms import is_norm


def norm_before_head(model: nn.Module) -> str | None:
    """The name of the last norm called before the output head, or None if the model has no such pair.

    The head is transformers' `get_output_embeddings()`. Run on one short random input.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if head is None:
        return None
    names = {module: name for name, module in model.named_modules()}
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))
        for module in names
        if module is head or is_norm(module)
    ]
    was_training = model.training
    try:
        logits_of(model.eval(), example_inputs(model, batch_size=1, sequence_length=4))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    before = called[: called.index(head)] if head in called else []
    return names[before[-1]] if before else None
