"""Inputs that a network accepts, made by its own signature and config, and what it puts out on them."""

from meristem.anatomy.inputs.example import example_inputs
from meristem.anatomy.inputs.outputs import device_of, logits_of, outputs_of

__all__ = ["device_of", "example_inputs", "logits_of", "outputs_of"]
