"""Inputs that a network accepts, made from its signature and config, and the outputs that it computes from
them.
"""

from meristem.anatomy.inputs.example import example_inputs, reads_only_text
from meristem.anatomy.inputs.interface import check_named
from meristem.anatomy.inputs.outputs import device_of, logits_of, outputs_of

__all__ = ["check_named", "device_of", "example_inputs", "logits_of", "outputs_of", "reads_only_text"]
