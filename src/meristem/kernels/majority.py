"""Majority Kernels: train k kernels in each layer, and deploy their mean.

"Majority Kernels: An Approach to Leverage Big Model Dynamics for Efficient Small Model Training",
arXiv:2402.05033. The full algorithm of the paper was not available to us. Random convex combinations in
training and the mean at deployment are a reconstruction from its abstract (see `majority_kernels.md`).
"""

from __future__ import annotations

import copy
import functools
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import kind_of
from meristem.anatomy.shared_names import names_of_parameters
from meristem.errors import MeristemError, nearest
from meristem.kernels.heads import output_heads
from meristem.kernels.mixture import Mixing, Mixture
from meristem.kernels.options import Gain, MajorityKernels
from meristem.subnetworks.blocks import unwrapped
from meristem.subnetworks.path import generator

KEEPS_KERNELS = "_meristem_keeps_kernels"  # set on a network while a Trainer trains it
OUTSTANDING, SMALLEST = 1.3, 8  # the factor by which a singular value exceeds noise; the smallest matrix that shows it
Weight = tuple[str, nn.Module, str]  # the path of a layer, the layer, the name of its weight


def majority(
    model: nn.Module,
    options: MajorityKernels | None = None,
    *,
    anatomy: Anatomy | None = None,
    **named: Any,
) -> nn.Module:
    """Copy `model` and give each of its linear, convolutional and fused expert weights several kernels
    (arXiv:2402.05033).

        ms.majority(model, kernels=3, granularity="unit")

    Train the result as any network. Call `mix_kernels(model, step)` before each optimizer step
    (`MajorityCallback` does that), and `deploy` at the end. Embeddings, biases, norms, the output head (also
    that of a classifier) and weights that do not train (`requires_grad`) keep one kernel.

    Args:
        model: any network. It does not change.
        options: a `MajorityKernels`. Instead of it, give its fields by name.
        anatomy: the result of `Anatomy.infer`, which networks outside transformers need for the option
            `axes`.
        named: the fields of `MajorityKernels` by name.

    Returns:
        A network of the same class, in which a weight `w` is computed from `parametrizations.w.original` of
        shape (kernels, *shape).

    Raises:
        MeristemError: if an option is impossible, or if no layer is chosen.
        AnatomyError: if `axes` is given and the anatomy of the network cannot be inferred.
    """
    own = replace(options, **named) if options else MajorityKernels.of(named)
    if next(mixtures(model), None):
        raise MeristemError(f"this {type(model).__name__} has kernels already; ms.deploy(model) takes their means")
    _check_patterns(own)
    many = copy.deepcopy(model)
    chosen = [
        (path, module, name)
        for path, module, name in _weights(many)
        if re.fullmatch(own.include, path) and not (own.exclude and re.fullmatch(own.exclude, path))
    ]
    if own.axes and chosen:
        chosen = _along([own.axes] if isinstance(own.axes, str) else own.axes, anatomy or Anatomy.of(model), chosen)
    if not chosen:
        raise MeristemError(
            f"no linear, convolutional or expert weight to train matches include={own.include!r}, exclude={own.exclude!r}"
        )
    weights = [module.get_parameter(name) for _, module, name in chosen]
    if own.start == "scratch" and (looks_trained(weights) or batch_norms_have_learned(many)):
        warnings.warn(
            'these weights look trained: start="scratch" keeps them in one kernel of several and shuffles them in the others, which '
            'loses what they compute; start="clone" keeps it',
            stacklevel=2,
        )
    for path, module, name in chosen:
        full = f"{path}.{name}"
        spread = _cloned(own, full, own.noise) if own.start == "clone" else _redrawn(own, full, own.gain)
        mixture = Mixture(full, own, spread, own.data_parallel, _unit_dimension(module, name))
        parametrize.register_parametrization(module, name, mixture)
    if own.data_parallel:
        ignored = {f"{path}.parametrizations.{name}.original" for path, _, name in chosen}
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(many, ignored)
    if hasattr(many, "save_pretrained"):
        many.__class__ = _saving_deployed(type(many))
    return many


@functools.cache
def _saving_deployed(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass, with the name of the original, whose `save_pretrained` writes the deployed network, because
    the original class loads nothing else. It writes all kernels while a Trainer trains the network,
    because its runs resume with them, and if a state dict is given.
    """

    def save_pretrained(self: nn.Module, directory: Any, *args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("state_dict") is not None or (len(args) > 1 and args[1] is not None)
        network = self if given or KEEPS_KERNELS in vars(self) else deploy(self)
        return original.save_pretrained(network, directory, *args, **kwargs)  # type: ignore[operator]

    own = {"save_pretrained": save_pretrained, "__module__": original.__module__, "_meristem_plain_class": original}
    return type(original.__name__, (original,), own)


def mix_kernels(model: nn.Module, step: int, total_steps: int | None = None) -> None:
    """Draw the combination of kernels for optimizer step `step` in every layer of a majority network.

    Args:
        model: a network that `ms.majority` made.
        step: the optimizer step.
        total_steps: the number of steps of the run, which annealing needs. If None, epsilon stays.

    Raises:
        MeristemError: if the network has no kernels, or if the run has no steps.
    """
    if total_steps is not None and total_steps < 1:
        raise MeristemError(f"total_steps is at least 1, got {total_steps}")
    found = False
    for module, name, mixture in mixtures(model):
        mixture.mix(module.parametrizations[name].original, step, total_steps)  # type: ignore[index, union-attr]
        found = True
    if not found:
        raise MeristemError(f"{type(model).__name__} has no kernels to mix; make them with ms.majority(model)")


def deploy(model: nn.Module, batches: Iterable[Any] | None = None) -> nn.Module:
    """Make the plain network whose weights are the means of the kernels. Its class, size and cost are those
    before `majority`.

        kernels = ms.majority(model, kernels=3)
        for step, batch in enumerate(loader):
            ms.mix_kernels(kernels, step)
            ...
        plain = ms.deploy(kernels)

    Args:
        model: a network that `ms.majority` made, also inside DDP or torch.compile. It does not change.
        batches: about 100 inputs on which the statistics of batch norms are estimated again (see
            `torch.optim.swa_utils.update_bn`). The statistics collected under random combinations are wrong
            for the mean.

    Raises:
        MeristemError: if the network has no kernels.
    """
    plain = copy.deepcopy(unwrapped(model)).eval()
    layers = list(mixtures(plain))
    if not layers:
        raise MeristemError(f"{type(model).__name__} has no kernels to average")
    for module in dict.fromkeys(module for module, _, _ in layers):
        _make_plain(module)
    plain.__class__ = getattr(type(plain), "_meristem_plain_class", type(plain))
    vars(plain).pop("_ddp_params_and_buffers_to_ignore", None)
    if batches is not None:
        torch.optim.swa_utils.update_bn(batches, plain)
    return plain.train(model.training)


def looks_trained(weights: Sequence[Tensor]) -> bool:
    """Whether most matrices have a singular value larger than independent entries of their size would have.

    The largest singular value of those is about (sqrt(rows) + sqrt(columns)) times their standard deviation
    (Marchenko, Pastur 1967).
    """
    found = []
    for weight in weights:
        matrix = weight.detach().float().flatten(0, -2) if weight.dim() == 3 else weight.detach().float().flatten(1)
        if min(matrix.shape) >= SMALLEST and not matrix.is_meta:
            edge = float(matrix.std()) * (matrix.shape[0] ** 0.5 + matrix.shape[1] ** 0.5)
            found.append(float(torch.linalg.matrix_norm(matrix, 2)) > OUTSTANDING * edge)
    return bool(found) and sum(found) * 2 > len(found)


def batch_norms_have_learned(model: nn.Module) -> bool:
    """Whether a batch norm has seen batches, and its gains, which are equal at the start, differ. The kernels
    of convolutions have few large singular values, however long they are trained.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.weight is not None]
    return any(
        m.num_batches_tracked is not None
        and int(m.num_batches_tracked) > 0
        and float(m.weight.detach().std(correction=0)) > 0
        for m in norms
        if not m.weight.is_meta
    )


def deployed_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the deployed network, from that of the network with kernels: each mean replaces its
    kernels.
    """
    found = {}
    for name, tensor in state.items():
        path, parametrized, rest = name.partition("parametrizations.")
        weight, original, _ = rest.partition(".original")
        found[path + weight if parametrized and original else name] = (
            tensor.mean(0) if parametrized and original else tensor
        )
    return found


def _make_plain(module: nn.Module) -> None:
    """Replace kernels by their means. (`remove_parametrizations` would remove the weight from the original
    network too, because copies share the class that it changes.)
    """
    means = {
        name: nn.Parameter(getattr(module, name).detach().clone(), requires_grad=chain.original.requires_grad)
        for name, chain in module.parametrizations.items()  # type: ignore[union-attr, operator]
    }
    others = dict(module._parameters)
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module._parameters.clear()
    for name, mean in means.items():
        module.register_parameter(name, mean)
    module._parameters.update(others)


def safe_learning_rate_factor(kernels: int, alpha: float = 1.0) -> float:
    """The factor by which the learning rate of SGD can be multiplied: 1 / E[sum p^2] = (k alpha + 1) / (alpha
    + 1), which is 2 for three kernels and alpha = 1.

    The mean of the kernels moves by 1/k of the step of a plain network. The combination in use moves by sum
    p^2 of it, which limits stability. Adam ignores the scale of gradients and needs no correction.
    """
    return (kernels * alpha + 1) / (alpha + 1)


def mixtures(model: nn.Module) -> Iterator[tuple[nn.Module, str, Mixture]]:
    """(module, name of its weight, its mixture) for every weight with kernels."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
                if isinstance(chain[0], Mixture):
                    yield module, name, chain[0]


def _check_patterns(own: MajorityKernels) -> None:
    for name in ("include", "exclude"):
        try:
            re.compile(getattr(own, name) or "")
        except re.error as error:
            raise MeristemError(f"{name}={getattr(own, name)!r} is not a regular expression: {error}") from None


def _weights(model: nn.Module) -> list[Weight]:
    """(path, module, parameter) of every weight that may have kernels: no output heads, no shared weights, no
    frozen weights.
    """
    heads = output_heads(model)
    shared = {name for names in names_of_parameters(model) if len(names) > 1 for name in names}
    found = []
    for path, module in model.named_modules():
        kind = type(module).__name__
        if module in heads:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            linear = isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or kind == "Conv1D"
            expert = "xpert" in kind and parameter.dim() == 3
            own = parameter.dim() >= 2 and f"{path}.{name}" not in shared and parameter.requires_grad
            if own and ((linear and name == "weight") or expert):
                found.append((path, module, name))
    return found


def _along(axes: Collection[str], anatomy: Anatomy, weights: list[Weight]) -> list[Weight]:
    """The weights that have a dimension along one of the axes, by name or kind."""
    found = {}
    for path, _, name in weights:
        if f"{path}.{name}" not in anatomy.tensors:
            raise MeristemError(f"the anatomy has no tensor {path}.{name}; it is another network's")
        names = {axis for d in anatomy.tensors[f"{path}.{name}"].dimensions for axis in d.layout.axes()}
        found[path, name] = names | {kind_of(axis) for axis in names}
    known = set().union(*found.values())
    for axis in axes:
        if axis not in known:
            raise MeristemError(f"no chosen weight runs along an axis {axis!r}; {nearest(axis, known)}")
    return [(path, module, name) for path, module, name in weights if not found[path, name].isdisjoint(axes)]


def _unit_dimension(module: nn.Module, name: str) -> int:
    """The dimension of the output units. It is 1 in Conv1D of transformers, in transposed convolutions and in
    fused experts, and 0 in others.
    """
    fused_experts = "xpert" in type(module).__name__ and module.get_parameter(name).dim() == 3
    transposed = type(module).__name__ == "Conv1D" or isinstance(module, nn.modules.conv._ConvTransposeNd)
    return 1 if fused_experts or transposed else 0


def _redrawn(mixing: Mixing, name: str, gain: Gain) -> Callable[[Tensor], Tensor]:
    k = mixing.kernels
    combined = safe_learning_rate_factor(
        k, mixing.alpha
    )  # 1 / E[sum p^2], by which the variance of a combination shrinks
    factor = {"none": 1.0, "deployed": math.sqrt(k), "training": math.sqrt(combined)}[gain]

    def spread(weight: Tensor) -> Tensor:
        rng = generator(mixing.seed, 0, f"kernels of {name}")
        others = [weight.flatten()[torch.randperm(weight.numel(), generator=rng)].view_as(weight) for _ in range(k - 1)]
        return factor * torch.stack([weight, *others])

    return spread


def _cloned(mixing: Mixing, name: str, noise: float) -> Callable[[Tensor], Tensor]:
    def spread(weight: Tensor) -> Tensor:
        rng = generator(mixing.seed, 0, f"kernels of {name}")
        drawn = torch.randn(mixing.kernels, *weight.shape, generator=rng).to(weight.device, weight.dtype)
        return weight + noise * weight.std() * (drawn - drawn.mean(0))

    return spread
