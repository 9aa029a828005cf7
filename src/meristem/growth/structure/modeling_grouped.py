"""A stock network whose norms measure groups of its units, each group separately.

Meristem's Deep Fusion writes this file next to the weights of networks fused with norm="grouped". It needs
only torch and transformers, and `from_pretrained(..., trust_remote_code=True)` runs it. `config.norm_groups`
says how many units each group has: "64+64".
"""

import copy
import functools
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call

FILE = "modeling_grouped.py"
ENDING = "\n\n# The classes of this checkpoint" + "."  # (in two parts, so that this line does not end the file)


def grouped(config_class, model_class):
    """The config and model class whose norms over the residual stream are grouped, made from stock ones."""

    class Config(config_class):
        model_type = f"grouped_{config_class.model_type}"
        base_model_type = config_class.model_type

    class Model(model_class):
        def __init__(self, config, *args, **kwargs):
            super().__init__(config, *args, **kwargs)
            group_norms(self, config.hidden_size, group_sizes(config.norm_groups, config.hidden_size))

        def save_pretrained(self, save_directory, is_main_process=True, **kwargs):
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
            if is_main_process:
                (Path(save_directory) / FILE).write_text(_code(config_class.__name__, model_class.__name__))

    for made, stock in ((Config, config_class), (Model, model_class)):
        made.__name__ = made.__qualname__ = f"Grouped{stock.__name__}"
        made.__module__ = __name__
    Model.config_class = Config
    return Config, Model


def _code(config_name, model_name):
    """This file, with the two classes that a checkpoint's config names at its end."""
    general = Path(__file__).read_text().split(ENDING)[0]
    made = f"Grouped{config_name}, Grouped{model_name} = grouped({config_name}, {model_name})"
    return f"{general}{ENDING}\nfrom transformers import {config_name}, {model_name}  # noqa: E402\n\n{made}\n"


def group_sizes(norm_groups, hidden_size):
    """The sizes that "64+64" means, scaled to `hidden_size`."""
    shares = [int(share) for share in norm_groups.split("+")]
    return [share * hidden_size // sum(shares) for share in shares]


def group_norms(model, hidden_size, groups):
    """Make every norm over `hidden_size` units measure each of `groups` separately. Names and values of
    weights do not change.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if "Norm" in type(module).__name__ and isinstance(weight, nn.Parameter) and weight.shape == (hidden_size,):
            parts = [_narrowed(module, group) for group in groups]
            module.__class__ = _grouped_norm(type(module))
            module.__dict__["_parts"] = parts  # not registered: they have no weights of their own


@functools.cache
def _grouped_norm(norm_class):
    class Norm(norm_class):
        def forward(self, hidden_states):
            done, start, normed = dict(self.named_parameters(recurse=False)), 0, []
            for part in self._parts:
                end = start + part.weight.shape[0]
                own = {name: tensor[start:end] for name, tensor in done.items()}
                normed.append(functional_call(part, own, (hidden_states[..., start:end],)))
                start = end
            return torch.cat(normed, dim=-1)

    Norm.__name__ = Norm.__qualname__ = norm_class.__name__  # some networks look at it
    return Norm


def _narrowed(norm, size):
    """The same norm over `size` units, without weights."""
    part = copy.deepcopy(norm)
    for name, tensor in norm.named_parameters(recurse=False):
        empty = torch.empty(size, dtype=tensor.dtype, device="meta")
        setattr(part, name, nn.Parameter(empty, requires_grad=False))
    if hasattr(part, "normalized_shape"):
        part.normalized_shape = (size,)
    return part
