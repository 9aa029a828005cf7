"""The functions `ms.grow`, `ms.shrink` and `ms.grow_optimizer`. `ms.Growth` keeps everything else that a
growth finds out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meristem.anatomy import Anatomy
from meristem.anatomy.streamed import weights_of
from meristem.errors import MeristemError
from meristem.growth.growth import Growth
from meristem.growth.methods.method import Methods, as_list
from meristem.growth.optimizers.optimizer import grown_optimizer
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.settle import settle
from meristem.growth.steps import take_steps


def grow(
    model: nn.Module | Growth,
    method: Methods | None = None,
    *,
    like: Any = None,
    anatomy: Anatomy | None = None,
    verify: bool = True,
    inputs: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Make a larger network from `model`. The model itself does not change.

        big = ms.grow(small, ms.HyperCloning(width=2))
        deep = ms.grow(small, ms.IdentityBlocks(num_hidden_layers=6))
        both = ms.grow(small, [ms.HyperCloning(width=2), ms.IdentityBlocks(num_hidden_layers=6)])
        like = ms.grow(small, like="target/config.json")

    Args:
        model: a transformers model, any nn.Module together with its `anatomy`, or an earlier growth.
        method: a growth method, or a list of methods that are applied one after another.
        like: a target that replaces the method: a transformers config, the path of a config.json or of a
            model directory, or a hub name. Every axis grows to its size in the target. The function is kept
            wherever this is mathematically possible (see `growth.like`).
        anatomy: the result of `Anatomy.infer`. Networks outside transformers need it.
        verify: prove that the function is kept, if every method promises it.
        inputs: keyword arguments of the model's forward, on which everything is measured. Random ones by
            default.

    Returns:
        A module of the same class, with the same dtype, on the same device. A transformers model becomes a
        stock model that `save_pretrained` can save. Methods that make or copy experts return the class of the
        mixture.

    Raises:
        MeristemError: if the targets do not fit the network, or if neither or both of `method` and `like` are
            given.
        PreservationError: if a growth promises to keep the function and does not keep it.
    """
    return Growth.of(model, method, like=like, anatomy=anatomy, verify=verify, inputs=inputs).model


grow_with_certificate = Growth.of  # the counterpart of `fuse_with_certificate` under a name like it


def shrink(
    model: nn.Module | Growth,
    method: Methods,
    *,
    anatomy: Anatomy | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Make a smaller network from a part of `model`. The model itself does not change.

        half = ms.shrink(model, ms.WeightSelection(intermediate_size=64))
        pruned = ms.shrink(model, ms.Prune(intermediate_size=64), inputs=batch)

    Args:
        model: a transformers model, any nn.Module together with its `anatomy`, or an earlier growth.
        method: a method that shrinks, such as `WeightSelection(hidden_size=256)` or `Prune`, or a list of
            them.
        anatomy: the result of `Anatomy.infer`. Networks outside transformers need it.
        inputs: keyword arguments of the model's forward. The result is measured on them, and `Prune` chooses
            its units by them. Random ones by default.

    Returns:
        A module of the same class, with the same dtype, on the same device.

    Raises:
        MeristemError: if a method grows, or if the targets do not fit the network.
    """
    growing = [chosen.name for chosen in as_list(method) if not chosen.shrinks]
    if growing:
        raise MeristemError(
            f"{growing[0]} grows; shrink takes a method that shrinks, such as WeightSelection(hidden_size=...)"
        )
    return Growth.of(model, method, anatomy=anatomy, inputs=inputs).model


def grow_optimizer(
    optimizer: Optimizer,
    small: nn.Module,
    big: nn.Module,
    method: Methods,
    *,
    anatomy: Anatomy | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    scale_learning_rate: bool = False,
) -> Optimizer:
    """Make an optimizer for `big` from the one that trained `small`. The state grows, and the hyperparameters
    are copied.

        method = ms.HyperCloning(width=2)
        big = ms.grow(small, method)
        optimizer = ms.grow_optimizer(optimizer, small, big, method)

    Moments follow the dual maps: g' = read_out . g . write_in^T (HyperCloning, arXiv:2409.12903;
    `docs/theory.md`). `Growth.grow_optimizer` does the same with the plans of the growth. This function plans
    again, and compares the result with `big`.

    Args:
        optimizer: an optimizer of `small`, of a kind in the table of `growth.optimizer_families`, or another
            one whose state has the same entries.
        small: the network before the growth.
        big: the network that `method` made from it.
        method: the method or list of methods that was given to `grow`.
        anatomy: the anatomy that was given to `grow`.
        inputs: the inputs that were given to `grow`.
        scale_learning_rate: split the parameter groups so that the step of each weight is proportional to its
            new scale, as the optimizer's row in the table says. The large network then follows the trajectory
            of the small one until its symmetry is broken. By default all weights keep their learning rate.

    Returns:
        An optimizer of the same class, over the parameters of `big`.

    Raises:
        MeristemError: if the optimizer is not that of `small`, if its state cannot be grown, or if `big` is
            not what `method` makes from `small`.
    """
    methods, anatomy = as_list(method), (anatomy or Anatomy.of(small)).watched(inputs)
    steps = take_steps(small, methods, anatomy, inputs)
    if _first_difference(steps.plans, steps.model, big) is not None:
        settled, _ = settle(anatomy, small, inputs)
        steps = take_steps(small, methods, settled, inputs)
        different = _first_difference(steps.plans, steps.model, big)
        if different is not None:
            raise MeristemError(
                f"the large network is not what {', '.join(m.name for m in methods)} makes of the small one: they differ "
                f"in {different}. Grow the optimizer before either network is trained on, or use ms.Growth"
            )
    return grown_optimizer(optimizer, small, big, steps.plans, scale_learning_rate)


def _first_difference(plans: tuple[GrowthPlan, ...], grown: nn.Module, big: nn.Module) -> str | None:
    """The name of the first tensor of `big` that differs from that of `grown` by more than rounding, or None
    if all agree.
    """
    expected, found = weights_of(grown), big.state_dict()
    for name in plans[-1].tensors:
        if name not in found or found[name].shape != expected[name].shape:
            return name
        ours, theirs = expected[name].to(found[name].device, found[name].dtype), found[name]
        rtol, atol = (1e-2, 1e-3) if theirs.dtype.itemsize < 4 else (1e-4, 1e-6)
        if not torch.allclose(ours, theirs, rtol=rtol, atol=atol):
            return name
    return None
