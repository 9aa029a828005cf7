"""The plain verbs: `ms.grow`, `ms.shrink`, `ms.grow_optimizer`. What else a growth knows is in `ms.Growth`."""

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
from meristem.growth.method import Methods, as_list
from meristem.growth.optimizer import grown_optimizer
from meristem.growth.plan import GrowthPlan
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
    """A larger network made from `model`, which is left as it is.

    Args:
        model: a transformers model, any nn.Module together with its `anatomy`, or an earlier growth.
        method: a growth method, or a list of them applied in turn.
        like: instead of a method, a target: a transformers config, the path of a config.json or of a model directory, or a hub
            name. Every axis grows to its size there, exactly wherever mathematics allows (see `growth.like`).
        anatomy: from `Anatomy.infer`, for networks outside transformers.
        verify: prove that the function is preserved, if the methods promise it.
        inputs: keyword arguments of the model's forward for all that is measured; random ones by default.

    Returns:
        A module of the same class, with the same dtype, on the same device; for transformers a stock model that
        `save_pretrained` saves.

    Raises:
        MeristemError: when the targets do not fit the network.
        PreservationError: when a growth that promises to preserve the function does not.
    """
    return Growth.of(model, method, like=like, anatomy=anatomy, verify=verify, inputs=inputs).model


grow_with_certificate = Growth.of  # beside `fuse_with_certificate`, for those who look for it under this name


def shrink(
    model: nn.Module | Growth,
    method: Methods,
    *,
    anatomy: Anatomy | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A smaller network cut out of `model`, which is left as it is.

    Args:
        model: a transformers model, any nn.Module together with its `anatomy`, or an earlier growth.
        method: such as `WeightSelection(hidden_size=256)`.
        anatomy, inputs: as for `grow`.

    Raises:
        MeristemError: for a method that grows, or when the targets do not fit the network.
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
    """An optimizer for `big`, with the state and the hyperparameters of the one that trained `small`.

    `Growth.grow_optimizer` does the same with the plans at hand. Here they are made again, and compared with `big`.

    Args:
        optimizer: one of the table in `growth.optimizer_families`, or any other with the same entries in its state.
        small, big: the network before and after `method`.
        method: exactly what was given to `grow`.
        anatomy, inputs: what was given to `grow`.
        scale_learning_rate: split the parameter groups so that each weight steps in proportion to its new scale, as the
            optimizer's row in the table says: the large network then follows the small one's trajectory until its symmetry
            is broken. Without it all weights keep their learning rate.

    Raises:
        MeristemError: if the optimizer is not the model's, holds state that cannot be grown, or `big` is not what `method` makes
            of `small`.
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
    """The name of the first tensor of `big` that is not that of `grown`, up to the rounding of its dtype; None if all are."""
    expected, found = weights_of(grown), big.state_dict()
    for name in plans[-1].tensors:
        if name not in found or found[name].shape != expected[name].shape:
            return name
        ours, theirs = expected[name].to(found[name].device, found[name].dtype), found[name]
        rtol, atol = (1e-2, 1e-3) if theirs.dtype.itemsize < 4 else (1e-4, 1e-6)
        if not torch.allclose(ours, theirs, rtol=rtol, atol=atol):
            return name
    return None
