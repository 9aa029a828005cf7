"""Inputs that a network accepts, made by its own signature and config, and what it puts out on them."""

from meristem.anatomy.inputs.example import example_inputs, reads_only_text
from meristem.anatomy.inputs.interface import check_named
from meristem.anatomy.inputs.outputs import device_of, logits_of, outputs_of

__all__ = ["check_named", "device_of", "example_inputs", "logits_of", "outputs_of", "reads_only_text"]
