"""Check that the arguments of a user fit together, before anything is planned. One sentence says what does
not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.inputs import check_named
from meristem.anatomy.streamed import is_streamed, weights_of
from meristem.errors import AnatomyError, MeristemError
from meristem.growth.plans.plan import GrowthPlan

NAMED = 3


def check_inputs(inputs: Any, model: nn.Module) -> None:
    """Raises MeristemError unless `inputs` are keyword arguments of the network's forward (or None)."""
    if inputs is not None and not isinstance(inputs, Mapping):
        raise MeristemError(
            f"inputs are keyword arguments of forward, {{name: tensor}}; got a {type(inputs).__name__}. If the network is called "
            'as model(x), and forward names the argument x, pass inputs={"x": x}'
        )
    if inputs is not None:
        check_named(model, inputs)


WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def check_bare(model: Any) -> None:
    """Raises MeristemError for a network inside another module (torch.compile, data parallelism), and for one
    without values.
    """
    inner = WRAPPERS.get(type(model).__name__)
    if inner is not None:
        raise MeristemError(f"{type(model).__name__} wraps the network; pass the network itself: model.{inner}")
    if isinstance(model, nn.Module) and not any(is_streamed(part) for part in model.modules()):
        state = model.state_dict()
        packed = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
        if packed is not None:
            raise MeristemError(
                f"{packed} is not a plain tensor but packed (torch.ao's quantisation), so there are no weights to grow; grow the network before "
                "it is quantised"
            )
        empty = next((name for name, tensor in state.items() if tensor.is_meta), None)
        if empty is not None:
            raise MeristemError(
                f"{empty} is on the meta device, so this network has no values to grow; load its weights first"
            )


def check_number(anatomies: Sequence[Anatomy] | None, models: Sequence[Any]) -> None:
    """Raises MeristemError unless there is one anatomy for each network."""
    if anatomies is not None and len(anatomies) != len(models):
        raise MeristemError(f"anatomies has {len(anatomies)} entries for {len(models)} networks; give one for each")


def check_same(model: nn.Module, anatomy: Anatomy) -> None:
    """Raises MeristemError unless the anatomy is that of the network, tensor by tensor, so that no tensor is
    lost or invented.
    """
    state = model.state_dict()
    names = set(weights_of(model))
    if any(".parametrizations." in name for name in names - set(anatomy.tensors)):
        raise MeristemError(
            f"the weights of this {type(model).__name__} are computed from other tensors (several kernels, from ms.majority?); "
            "ms.deploy(model) makes a plain network, which can grow"
        )
    lacks, more = sorted(set(anatomy.tensors) - names), sorted(names - set(anatomy.tensors))
    if lacks or more:
        said = [f"the network has no {listed(lacks)}"] if lacks else []
        said += [f"the anatomy does not know {listed(more)} of the network"] if more else []
        raise MeristemError(
            f"the anatomy describes another network than this {type(model).__name__}: {'; '.join(said)}. Describe the class that builds "
            "all its tensors"
        )
    for name, tensor in anatomy.tensors.items():
        if tuple(state[name].shape) != tensor.shape:
            raise MeristemError(
                f"the anatomy describes a network of another size: {name} is {tuple(state[name].shape)} in the network and "
                f"{tensor.shape} in the anatomy; infer it at the network's own sizes"
            )


def check_guesses(plan: GrowthPlan) -> None:
    """Raises AnatomyError if an axis changes along which a tensor of unknown roles runs. The message names
    what would show the roles.
    """
    moved = {axis for axis, axis_map in plan.maps.items() if not axis_map.is_identity()}
    builder = plan.source.builder
    following = builder.following if isinstance(builder, FunctionBuilder) and not plan.source.traced else {}
    for axis, (name, place) in following.items():
        if axis in moved:
            assert isinstance(builder, FunctionBuilder)
            raise AnatomyError(
                f"dimension {place} of {name} {plan.source.tensors[name].shape} has a size that {builder.model_type}() works out from "
                f"{', '.join(builder.arguments)} in a way of its own, so its shape alone does not tell what it is made of; pass inputs= "
                "(a forward pass shows it), or declare its layout with Anatomy.infer(..., overrides=Override(layouts=...))"
            )
    for name in sorted(plan.source.guessed):
        tensor = plan.source.tensors[name]
        if any(plan.source.axes_of(dimension.layout) & moved for dimension in tensor.dimensions):
            raise AnatomyError(
                f"{name} {tensor.shape} is a parameter of no module that Meristem knows, so its shape alone does not tell which of "
                "its dimensions are outputs and which are summed over; pass inputs= (a forward pass shows it), or "
                f"Anatomy.infer(..., roles={{{name!r}: {('write',) * (len(tensor.shape) - 1) + ('read',)}}})"
            )


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
