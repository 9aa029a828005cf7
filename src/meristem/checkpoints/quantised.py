"""Quantised weights that no config declares: their tensors show it. They have no units to grow, so they are
reported before anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from meristem.errors import MeristemError

MADE_BY = {  # the end of a tensor's name: what writes such tensors
    ".qweight": "GPTQ or AWQ", ".qzeros": "GPTQ or AWQ", ".weight_packed": "compressed-tensors", ".SCB": "bitsandbytes",
    ".absmax": "bitsandbytes", ".quant_map": "bitsandbytes", ".quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes", ".weight_scale_inv": "FP8", ".weight_scale": "FP8 or compressed-tensors",
    "_blocks": "MXFP4",
}  # fmt: skip


def check_not_quantised(source: object, placeholders: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    """Raises MeristemError if the tensors of a checkpoint are those of a quantised model, or integers where
    the class has floats.

    Args:
        source: the source, for the message.
        placeholders: {name: a stand-in with its dtype} of the tensors in the files.
        own: the same for the class.
    """
    for name, tensor in placeholders.items():
        maker = next((who for end, who in MADE_BY.items() if name.endswith(end)), None) if name not in own else None
        if maker == "MXFP4" and (tensor.dtype != torch.uint8 or f"{name[:-7]}_scales" not in placeholders):
            continue
        whole = name in own and own[name].is_floating_point() and not tensor.is_floating_point()
        if maker or (whole and tensor.dtype in (torch.int8, torch.uint8)):
            by = f", as {maker} writes it" if maker else f", stored as {str(tensor.dtype).removeprefix('torch.')}"
            raise MeristemError(f"{source} is quantised ({name}{by}); use the original weights")
        if whole and not tensor.is_complex():
            raise MeristemError(
                f"{source} holds {name} as {str(tensor.dtype).removeprefix('torch.')}, where its class has real numbers; "
                "use the weights as they were trained"
            )
