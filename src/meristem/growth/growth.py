"""One growth, whole: anatomy -> plan -> the target's anatomy -> certificate, and all that was found out on the way."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from meristem.anatomy import Anatomy
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.finite import with_finite_weights
from meristem.anatomy.inputs import example_inputs
from meristem.anatomy.streamed import is_streamed, weights_of
from meristem.certificates import Certificate, error_in_high_precision, stored_dtype, verify
from meristem.errors import MeristemError, PreservationError
from meristem.growth.build import build, in_float32
from meristem.growth.causes import known_cause
from meristem.growth.changed import changed_since
from meristem.growth.checks import check_bare, check_guesses, check_inputs, check_same
from meristem.growth.depth import new_layers
from meristem.growth.expected import expected_outputs
from meristem.growth.hypercloning import HyperCloning
from meristem.growth.like import like as growth_like
from meristem.growth.method import Method, Methods, as_list
from meristem.growth.optimizer import grown_optimizer
from meristem.growth.plan import GrowthPlan
from meristem.growth.provenance import Provenance
from meristem.growth.rounding import is_half
from meristem.growth.sampled import Kept, check_tensors, choose_blocks, grown_blocks, look, only
from meristem.growth.settle import settle
from meristem.growth.steps import Steps, take_steps
from meristem.growth.unkept import why_not_kept


@dataclass(frozen=True)
class Growth:
    """A grown network and everything that is known about it. Made by `Growth.of`.

    Attributes:
        source: the network that it was made from, as it was.
        model: the grown network.
        anatomy: of `model`, derived from the plans.
        plans: one for each method.
        methods: the methods and their options, as recorded in `meristem.json`.
        certificate: what was measured; None if nothing was.
        before: the provenance of `source`, if that was grown itself.
        pending: measures the certificate, where that was left for `prove`.
    """

    source: nn.Module
    model: nn.Module
    anatomy: Anatomy
    plans: tuple[GrowthPlan, ...]
    methods: tuple[dict[str, Any], ...]
    certificate: Certificate | None
    before: Provenance | None = None
    pending: Callable[[], Certificate | None] | None = field(default=None, repr=False, compare=False)

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
        """Grow `model`, which is left as it is.

        Args:
            model: a transformers model, any nn.Module together with its `anatomy`, or a growth whose result grows further.
            method: a growth method, or a list of them applied in turn.
            like: instead of a method, the config whose shape the network is to get (see `growth.like`).
            anatomy: from `Anatomy.infer`, for networks outside transformers, or what an earlier growth knows.
            verify: measure the grown network, raise if a promise to preserve the function is not kept, and try out what
                names and shapes leave open where a method promises nothing.
            sample: prove with so many blocks of each list (the first, the last, others at random) instead of all, and check some
                rows of every tensor by algebra (see `growth.sampled`): of a streamed network, as it is written.
            inputs: keyword arguments of the model's forward for all that is measured; random ones by default.
            later: leave measuring to `prove`, which a streamed network's writer calls: what the proof makes of it is written.

        Raises:
            MeristemError: when the targets do not fit the network.
            PreservationError: when a growth that promises to preserve the function does not.
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
        kept = choose_blocks(anatomy, sample) if verify and sample is not None else None
        recorded = tuple(m.options() for m in methods)
        if verify and later:
            steps = _looked_at(model, steps) if kept is not None and steps.promised else steps
            pending = functools.partial(_measured, model, steps, methods, inputs, kept)
            return Growth(model, steps.model, steps.anatomy, steps.plans, recorded, None, before, pending)
        if verify and steps.promised:
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
        """This growth with the certificate that `Growth.of(later=True)` has left open; itself where nothing is open.

        Raises:
            PreservationError: if a promise is not kept. `Growth.of` without `later` may know another way to grow this network.
        """
        return self if self.pending is None else replace(self, certificate=self.pending(), pending=None)

    @property
    def provenance(self) -> Provenance:
        """Which entries of which tensor are old, copied or fresh; of a growth's growth, `before` tells the same of the first."""
        return Provenance.of(self.plans, self.before)

    @property
    def new_layers(self) -> dict[str, list[int]]:
        """{list of blocks: places of its new layers}: {"layers": [2, 5]}."""
        return new_layers(self.plans)

    def grow_optimizer(self, optimizer: Optimizer, *, scale_learning_rate: bool = False) -> Optimizer:
        """An optimizer for `model`, with the state and the hyperparameters of the one that trained `source`.

        Args, raises: see `ms.grow_optimizer`.
        """
        return grown_optimizer(optimizer, self.source, self.model, self.plans, scale_learning_rate)


def known(model: nn.Module | Growth, anatomy: Anatomy | None) -> tuple[nn.Module, Anatomy | None]:
    """A network and what is known about its anatomy, from either of the two forms that the verbs take."""
    check_bare(model)
    return (model.model, anatomy or model.anatomy) if isinstance(model, Growth) else (model, anatomy)


def _after_trial(
    model: nn.Module, methods: list[Method], anatomy: Anatomy, steps: Steps, inputs: Mapping[str, Tensor] | None
) -> Steps:
    """A growth that promises nothing proves nothing either, so its anatomy is tried out by a clone, which has to be exact."""
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
    """What holds of these steps; None where nothing was promised and inputs cannot be guessed.

    Raises:
        PreservationError: if a promise is not kept.
    """
    try:
        certificate = certify(model, steps, inputs, kept)
    except MeristemError as error:
        if steps.promised:
            raise
        named = ", ".join(method.name for method in methods)
        where = " on inputs=" if inputs is not None else ""
        warnings.warn(
            f"{named}: nothing is proved of this growth, which could not be measured{where}: {error}", stacklevel=3
        )
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
    """Grow once more, with what a trial tells about the architecture that its names and shapes did not; the last
    trial lays copies in the other order.

    Raises:
        PreservationError: if that does not help either.
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
    """Whether units get different numbers of copies, or silent neighbours. A network whose clone is exact and this is not does
    something with its units that only whole multiples survive (a product of units, a function along another dimension)."""
    return any(not axis_map.is_uniform() for plan in steps.plans for axis_map in plan.maps.values())


def _say_what_is_lost(
    model: nn.Module, methods: Sequence[Method], steps: Steps, certificate: Certificate | None
) -> None:
    """Warn of a growth by a method that usually keeps the function, and here does not promise to; and of a network that is not
    what its class builds, where no promise could show that."""
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
        cause = (
            differs
            if changed
            else "Norms that see uneven copies, or blocks that cannot be silent, are the usual causes; whole multiples of the width "
            "are exact"
        )
        warnings.warn(
            f"{', '.join(broken)}: this growth does not keep the function: {certificate.summary()}. {cause}",
            stacklevel=4,
        )
    elif changed:
        warnings.warn(f"{names}: {differs}", stacklevel=4)


def _looked_at(model: nn.Module, steps: Steps) -> Steps:
    """The same steps, every tensor of whose result is checked: at once, or as it is written if the network is streamed."""
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
    """Measure what was grown as it is stored and, where that is in half precision, as it would be without rounding.

    Args:
        kept: the blocks of `model` that run, of all those there are (see `growth.sampled`).
    """
    expected = functools.partial(expected_outputs, steps.plans)
    inputs = inputs if inputs is not None or kept is None else example_inputs(model)
    small, big = model, steps.model
    if kept is not None:
        grown = grown_blocks(steps.plans, kept)
        small, big = only(model, kept), only(steps.model, grown)
    certificate = verify(small, big, inputs, expected=expected)
    if kept is not None:
        certificate = replace(certificate, blocks=kept)
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
    """A sampled proof of two networks as they are stored, one of which was made of the other by these methods.

    Every tensor that the maps can be undone of is read once, and checked against the small network's.

    Args:
        sample: how many blocks of each list run.

    Raises:
        MeristemError: if the methods do not make a network of `big`'s shape, or promise nothing.
        PreservationError: naming the first tensor that is not what it was made of.
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
    return certify(small, replace(steps, model=big), inputs, choose_blocks(anatomy, sample))
