"""Inputs that a network accepts, made by its own signature and config, and what it puts out on them."""

from meristem.anatomy.inputs.example import example_inputs
from meristem.anatomy.inputs.outputs import logits_of, outputs_of

__all__ = ["example_inputs", "logits_of", "outputs_of"]
