"""One complete growth: from the anatomy to the plan, the large network and the certificate, with everything
found out on the way.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meristem.anatomy import Anatomy
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.finite import check_weights, with_finite_weights
from meristem.anatomy.inputs import example_inputs
from meristem.anatomy.streamed import is_streamed, weights_of
from meristem.certificates import Certificate, error_in_high_precision, stored_dtype, verify
from meristem.errors import MeristemError, PreservationError
from meristem.growth.like.config import like as growth_like
from meristem.growth.methods.hypercloning import HyperCloning
from meristem.growth.methods.method import Method, Methods, as_list
from meristem.growth.optimizers.optimizer import grown_optimizer
from meristem.growth.plans.depth import new_layers
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.proofs.checks import check_bare, check_guesses, check_inputs, check_same
from meristem.growth.proofs.expected import expected_outputs
from meristem.growth.proofs.sampled import Kept, check_tensors, choose_blocks, grown_blocks, look, only
from meristem.growth.proofs.unkept import why_not_kept
from meristem.growth.provenance import Provenance
from meristem.growth.settle import settle
from meristem.growth.steps import Steps, take_steps
from meristem.growth.structure.changed import changed_since
from meristem.growth.tensors.build import build, in_float32
from meristem.growth.tensors.rounding import is_half
from meristem.growth.widths.causes import known_cause


@dataclass(frozen=True)
class Growth:
    """A grown network and everything that is known about it. `Growth.of` makes it.

        growth = ms.Growth.of(small, ms.HyperCloning(width=2))
        big, optimizer = growth.model, growth.grow_optimizer(optimizer)
        print(growth.certificate.summary())

    Attributes:
        source: the network before the growth, unchanged.
        model: the grown network.
        anatomy: the anatomy of `model`, derived from the plans.
        plans: one plan for each method.
        methods: the methods and their options, as recorded in `meristem.json`.
        certificate: what was measured, or None if nothing was.
        before: the provenance of `source`, if an earlier growth made it.
        pending: a function that measures the certificate, if `Growth.of(later=True)` left that to `prove`.
    """

    source: nn.Module
    model: nn.Module
    anatomy: Anatomy
    plans: tuple[GrowthPlan, ...]
    methods: tuple[dict[str, Any], ...]
    certificate: Certificate | None
    before: Provenance | None = None
    pending: Callable[[], Certificate | None] | None = field(default=None, repr=False, compare=False)
    _glimpsed: list[Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_glimpsed", glimpse(self.source))

    @staticmethod
    def of(
        model: nn.Module | Growth,
        method: Methods | None = None,
        *,
        like: Any = None,
        anatomy: Anatomy | None = None,
        verify: bool = True,
        sample: int | None = None,
        inputs: Mapping[str, Tensor] | None = None,
        later: bool = False,
    ) -> Growth:
        """Grow `model` and keep what is found out. The model itself does not change.

        Args:
            model: a transformers model, any nn.Module together with its `anatomy`, or a growth whose result
                grows further.
            method: a growth method, or a list of methods that are applied one after another.
            like: a target config that replaces the method. The result has its sizes (see `growth.like`).
            anatomy: the result of `Anatomy.infer`, for networks outside transformers, or the `anatomy` of an
                earlier growth.
            verify: measure the grown network, and raise an error if a promise to keep the function is broken.
                If no method promises it, a clone tests what names and shapes leave open about the
                architecture.
            sample: run the proof on this many blocks of each list instead of all: the first, the last, others
                at random by the method's seed, and one of each further kind. Some rows of every tensor are
                then checked by algebra (see `growth.sampled`); a streamed network is checked while it is
                written.
            inputs: keyword arguments of the model's forward, on which everything is measured. Random ones by
                default.
            later: leave the measurement to `prove`. The writer of a streamed network calls `prove`, and
                writes the tensors that the proof computes.

        Raises:
            MeristemError: if the targets do not fit the network, or if neither or both of `method` and `like`
                are given.
            PreservationError: if a growth promises to keep the function and does not keep it.
        """
        before = model.provenance if isinstance(model, Growth) else None
        model, anatomy = known(model, anatomy)
        check_inputs(inputs, model)
        if (method is None) == (like is None):
            raise MeristemError("grow takes either a method, or like= and a target config")
        methods = as_list(method) if method is not None else []
        if not methods and like is None:
            raise MeristemError("no growth method given")
        anatomy = (anatomy or Anatomy.of(model)).watched(inputs)
        check_same(model, anatomy)
        methods = methods or list(growth_like(model, like, anatomy).methods)
        model = with_finite_weights(model) if any(method.shrinks for method in methods) else model
        steps = take_steps(model, methods, anatomy, inputs)
        check_guesses(steps.plans[0])
        certificate = None
        if verify and not steps.promised and any(plan.maps for plan in steps.plans):
            steps = _after_trial(model, methods, anatomy, steps, inputs)
        kept = choose_blocks(model, anatomy, sample, _seed_of(methods)) if verify and sample is not None else None
        recorded = tuple(m.options() for m in methods)
        if verify and later:
            steps = _looked_at(model, steps) if kept is not None and steps.promised else steps
            pending = functools.partial(_measured, model, steps, methods, inputs, kept)
            return Growth(model, steps.model, steps.anatomy, steps.plans, recorded, None, before, pending)
        if verify and steps.promised:
            check_weights(model)
            certificate = certify(model, steps, inputs, kept)
            if not certificate.holds:
                steps, certificate, methods = _second_try(model, methods, anatomy, inputs, kept)
            if kept is not None:
                steps = _looked_at(model, steps)
            recorded = tuple(m.options() for m in methods)
        elif verify:
            certificate = _measured(model, steps, methods, inputs, kept)
        return Growth(model, steps.model, steps.anatomy, steps.plans, recorded, certificate, before)

    def prove(self) -> Growth:
        """Measure the certificate that `Growth.of(later=True)` left open.

        Returns:
            This growth with its certificate. The growth itself, if nothing is open.

        Raises:
            PreservationError: if a promise is broken. `Growth.of` without `later` may find another way to
                grow this network.
        """
        return self if self.pending is None else replace(self, certificate=self.pending(), pending=None)

    @property
    def provenance(self) -> Provenance:
        """Which entries of each tensor are old, copied or fresh. If `source` was grown too,
        `provenance.before` describes that growth.
        """
        return Provenance.of(self.plans, self.before)

    @property
    def new_layers(self) -> dict[str, list[int]]:
        """{list of blocks: numbers of its new layers}, for example {"layers": [2, 5]}."""
        return new_layers(self.plans)

    def grow_optimizer(self, optimizer: Optimizer, *, scale_learning_rate: bool = False) -> Optimizer:
        """Make an optimizer for `model` from the one that trained `source`. The state grows, and the
        hyperparameters are copied.

        Args:
            optimizer: an optimizer of `source`, as for `ms.grow_optimizer`.
            scale_learning_rate: make the step of each weight proportional to its new scale, as for
                `ms.grow_optimizer`.

        Raises:
            MeristemError: if the optimizer is not that of `source`, if `source` has trained on since the
                growth, or if the state cannot be grown.
        """
        if not all(map(torch.equal, glimpse(self.source), self._glimpsed)):
            raise MeristemError(
                "the source network has changed since it was grown, so the optimizer's state does not belong to the weights of "
                "the large network; grow the network again, and its optimizer directly afterwards"
            )
        return grown_optimizer(optimizer, self.source, self.model, self.plans, scale_learning_rate)


def glimpse(model: nn.Module) -> list[Tensor]:
    """Eight numbers of each parameter, by which training is noticed (fused optimizers do not count versions).
    Those on the meta device and those of other kinds of tensors are left out.
    """
    plain = [p.detach() for p in model.parameters() if type(p.data) is Tensor and not p.is_meta]
    return [parameter.flatten()[:8].float().cpu().nan_to_num() for parameter in plain]


def known(model: nn.Module | Growth, anatomy: Anatomy | None) -> tuple[nn.Module, Anatomy | None]:
    """The network and its anatomy, from either form that the public functions take: a model, or a growth."""
    check_bare(model)
    return (model.model, anatomy or model.anatomy) if isinstance(model, Growth) else (model, anatomy)


def _after_trial(
    model: nn.Module, methods: list[Method], anatomy: Anatomy, steps: Steps, inputs: Mapping[str, Tensor] | None
) -> Steps:
    """Test the anatomy of a growth that promises nothing by a clone, which has to be exact. Nothing else
    would prove it.
    """
    try:
        settled, _ = settle(anatomy, model, inputs)
    except MeristemError:  # it cannot be cloned, or its inputs cannot be guessed: what names and shapes say has to do
        return steps
    if settled is anatomy:
        return steps
    other = take_steps(model, methods, settled, inputs)
    if not isinstance(anatomy.builder, FunctionBuilder):
        return other
    try:  # a factor that copies make (of a product of two features) is none that a pad makes
        errors = [certify(model, tried, inputs).relative_error for tried in (steps, other)]
    except MeristemError:
        return other
    return steps if errors[0] <= errors[1] else other


def _measured(
    model: nn.Module,
    steps: Steps,
    methods: Sequence[Method],
    inputs: Mapping[str, Tensor] | None,
    kept: Kept | None,
) -> Certificate | None:
    """The certificate of these steps, or None if nothing was promised and the inputs cannot be guessed.

    Raises:
        PreservationError: if a promise is broken.
    """
    try:
        check_weights(model)
        certificate = certify(model, steps, inputs, kept)
    except MeristemError as error:
        if steps.promised:
            raise
        named = ", ".join(method.name for method in methods)
        where = " on inputs=" if inputs is not None else ""
        warnings.warn(f"{named}: this growth could not be measured{where}, so nothing is proved: {error}", stacklevel=3)
        _say_what_is_lost(model, methods, steps, None)
        return None
    if steps.promised and not certificate.holds:
        raise PreservationError(f"this growth should keep the function and does not: {certificate.summary()}")
    _say_what_is_lost(model, methods, steps, certificate)
    return certificate


def _second_try(
    model: nn.Module,
    methods: list[Method],
    anatomy: Anatomy,
    inputs: Mapping[str, Tensor] | None,
    kept: Kept | None = None,
) -> tuple[Steps, Certificate, list[Method]]:
    """Grow once more, with what a trial shows about the architecture that names and shapes do not. The last
    trial orders the copies the other way.

    Raises:
        PreservationError: if this does not keep the function either.
    """
    settled, parting = settle(anatomy, model, inputs)
    steps = take_steps(model, methods, settled, inputs)
    certificate = certify(model, steps, inputs, kept)
    if not certificate.holds and any(plan.layers for plan in steps.plans):
        by_number = replace(settled, override=replace(settled.override, numbered=True))  # as shifted windows do (Swin)
        at_the_end = take_steps(model, methods, by_number, inputs)
        proof = certify(model, at_the_end, inputs, kept)
        steps, certificate = (at_the_end, proof) if proof.holds else (steps, certificate)
    if not certificate.holds and any(isinstance(m, HyperCloning) and m.order == "tile" for m in methods):
        other = [replace(m, order="interleave") if isinstance(m, HyperCloning) else m for m in methods]
        interleaved = take_steps(model, other, anatomy, inputs)
        proof = certify(model, interleaved, inputs, kept)
        if proof.holds:
            return interleaved, proof, other
    if certificate.holds:
        return steps, certificate, methods
    uneven = parting is None and isinstance(anatomy.builder, FunctionBuilder) and _uneven(steps)
    if uneven and not known_cause(model, steps.plans):
        steps = replace(steps, plans=tuple(replace(plan, preserves_function=False) for plan in steps.plans))
        _say_what_is_lost(model, methods, steps, certificate)
        return steps, certificate, methods

    def proof_of(others: Sequence[Method]) -> Certificate:
        return certify(model, take_steps(model, others, settled, inputs), inputs, kept)

    raise PreservationError(why_not_kept(model, methods, anatomy, steps.plans, certificate, parting, proof_of))


def _uneven(steps: Steps) -> bool:
    """Whether units get different numbers of copies, or silent neighbours. If the clone of a network is exact
    and this growth is not, the network combines its units in a way that only whole multiples keep (a
    product of units, a function along another dimension).
    """
    return any(not axis_map.is_uniform() for plan in steps.plans for axis_map in plan.maps.values())


def _say_what_is_lost(
    model: nn.Module, methods: Sequence[Method], steps: Steps, certificate: Certificate | None
) -> None:
    """Warn of a growth by a method that usually keeps the function, and here does not promise to; and of a
    network that is not what its class builds, where no promise could show that."""
    if certificate is not None and certificate.holds:
        return
    names = ", ".join(method.name for method in methods)
    pairs = zip(methods, steps.plans, strict=True)
    broken = [m.name for m, plan in pairs if m.preserving and not plan.preserves_function]
    changed = changed_since(model)
    differs = (
        f"The network differs from what its class builds from its config, and only that can grow or be cut: {changed}"
    )
    if broken and certificate is not None:
        entries = sorted({entry for method in methods for entry in getattr(method, "fields", None) or ()})
        usual = "Norms that see uneven copies, or blocks that cannot be silent, are the usual causes; whole multiples of the width are exact"
        taken = f"The config entries that are taken from the target are the likely cause: {', '.join(entries)}"
        cause = differs if changed else taken if entries else usual
        warnings.warn(
            f"{', '.join(broken)}: this growth does not keep the function: {certificate.summary()}. {cause}",
            stacklevel=4,
        )
    elif changed:
        warnings.warn(f"{names}: {differs}", stacklevel=4)


def _looked_at(model: nn.Module, steps: Steps) -> Steps:
    """The same steps, with a check on every tensor of the result: at once, or while it is written if the
    network is streamed.
    """
    before = model
    for plan in steps.plans[:-1]:
        before = build(plan, before)
    if is_streamed(steps.model):
        return replace(steps, model=build(steps.plans[-1], before, look))
    check_tensors(steps.plans[-1], weights_of(before), weights_of(steps.model))
    return steps


def certify(
    model: nn.Module, steps: Steps, inputs: Mapping[str, Tensor] | None, kept: Kept | None = None
) -> Certificate:
    """Measure a growth with the weights as stored. If they are in half precision, measure it without rounding
    too.

    Args:
        kept: the blocks of `model` that run. All by default (see `growth.sampled`).
    """
    expected = functools.partial(expected_outputs, steps.plans)
    drawn = inputs is None and kept is not None
    inputs = example_inputs(model) if drawn else inputs
    small, big = model, steps.model
    if kept is not None:
        grown = grown_blocks(steps.plans, kept)
        small, big = only(model, kept), only(steps.model, grown)
    certificate = verify(small, big, inputs, expected=expected)
    if kept is not None:
        said = certificate.inputs.replace("given", "random", 1) if drawn else certificate.inputs
        certificate = replace(certificate, blocks=kept, inputs=said)
    if not is_half(stored_dtype(model)) or certificate.holds_as_stored:
        return certificate
    current = exact = in_float32(steps.plans[0].source, model)
    for plan in steps.plans:
        current = build(plan, current)
    if kept is not None:
        exact, current = only(exact, kept), only(current, grown_blocks(steps.plans, kept))
    error, tolerance = error_in_high_precision(exact, current, inputs, expected=expected)
    return replace(certificate, unrounded_relative_error=error, unrounded_tolerance=tolerance)


def sampled_certificate(
    small: nn.Module, big: nn.Module, methods: Methods, sample: int, inputs: Mapping[str, Tensor] | None = None
) -> Certificate:
    """Prove by sampling that two networks, as they are stored, are a source and its growth by these methods.

    Every tensor whose maps can be inverted is read once, and checked against that of the small network.

    Args:
        small: the network before the growth.
        big: the network after it.
        methods: the method, or the list of methods, that made `big`.
        sample: how many blocks of each list run.
        inputs: keyword arguments of forward. Random ones by default.

    Raises:
        MeristemError: if the methods do not make a network of the shape of `big`, or if they promise nothing.
        PreservationError: if a tensor is not what the methods make. The message names the first one.
    """
    anatomy = Anatomy.of(small)
    steps = take_steps(small, as_list(methods), anatomy, inputs)
    if not steps.promised:
        raise MeristemError(f"{', '.join(m.name for m in as_list(methods))} does not promise to keep the function")
    before = small
    for plan in steps.plans[:-1]:
        before = build(plan, before)
    shapes = {name: tuple(tensor.shape) for name, tensor in big.state_dict().items()}
    odd = next((name for name, shape in steps.plans[-1].shapes.items() if shapes.get(name) != shape), None)
    if odd is not None:
        raise MeristemError(
            f"{odd} is {shapes.get(odd)}, and the recorded growth makes {steps.plans[-1].shapes[odd]} of it"
        )
    check_tensors(steps.plans[-1], weights_of(before), weights_of(big))
    kept = choose_blocks(small, anatomy, sample, _seed_of(as_list(methods)))
    return certify(small, replace(steps, model=big), inputs, kept)


def _seed_of(methods: Sequence[Method]) -> int:
    """The seed of the first method that draws numbers, or 0."""
    return next((seed for method in methods if (seed := getattr(method, "seed", None)) is not None), 0)
