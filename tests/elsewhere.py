"""A device that every machine has: tensors on it live in CPU memory, and meet CPU tensors as those of a GPU do, with an error.

    with Elsewhere():
        model.to(DEVICE)

Inside, whatever is made on or moved to `DEVICE` is a wrapper around a CPU tensor, whose operators run on the CPU; mixing it
with a plain tensor of one or more dimensions raises what PyTorch raises for two devices.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "elsewhere"
backend_registration._setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(f"{NAME}:0")


class Away(Tensor):
    """A tensor on `DEVICE`; `held` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Away:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"Away({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Inside, `DEVICE` can be used, and `module.to` makes new parameters, since a wrapper cannot take another's data."""

    def __enter__(self):
        self._before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *exception):
        torch.__future__.set_overwrite_module_params_on_conversion(self._before)
        return super().__exit__(*exception)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


@torch.library.impl("aten::empty.memory_format", NAME)
def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> Tensor:
    """What PyTorch calls below the mode, in `torch.tensor(..., device=DEVICE)`."""
    return Away(torch.empty(size, dtype=dtype))


@torch.library.impl("aten::empty_strided", NAME)
def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None) -> Tensor:
    return Away(torch.empty_strided(size, stride, dtype=dtype))


@torch.library.impl("aten::_copy_from", NAME)
def _copy_from(source, target, non_blocking=False) -> Tensor:
    held = source.held if isinstance(source, Away) else source
    if isinstance(target, Away):
        target.held.copy_(held)
    else:
        target.copy_(held)
    return target


MAY_MIX = ("copy_", "_to_copy", "_local_scalar_dense", "set_data")


def run(function, args, kwargs):
    """One operator: on the CPU, with its result where its arguments are or where it is asked to be."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = [tensor for tensor in tensors if isinstance(tensor, Away)]
    name = str(function)
    scalars_may_mix = "_fused_" not in name  # a fused optimizer step reads even the count of steps on the device
    plain = [t for t in tensors if not isinstance(t, Away) and not (scalars_may_mix and t.dim() == 0)]
    if (
        "aten.index." in name or "aten.index_put" in name
    ):  # a tensor on a GPU takes indices from the CPU, and no other way about
        plain = (
            plain if not isinstance(args[0], Away) else [t for t in args[2:3] if not isinstance(t, Away) and t.dim()]
        )
    if away and plain and not any(part in name for part in MAY_MIX):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu in {name}")
    asked = kwargs.get("device")
    there = bool(away) if asked is None else torch.device(asked).type == NAME
    if asked is not None and there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    unwrapped = tree_map_only(Away, lambda tensor: tensor.held, (args, kwargs))
    result = function(*unwrapped[0], **unwrapped[1])
    if name.split(".")[1].endswith("_") and isinstance(args[0], Tensor):  # in place: the very tensor that was given
        return args[0]
    return tree_map_only(Tensor, Away, result) if there else result
