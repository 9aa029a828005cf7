"""The order of precedence if types of modules, a watched pass and declarations all describe one tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from meristem.algebra import Layout
from meristem.anatomy.overrides import Override
from meristem.anatomy.roles import Role, known_roles, owner_and_parameter
from meristem.anatomy.structure import TensorAnatomy
from meristem.anatomy.tracing.trace import Sizes, Traced
from meristem.errors import AnatomyError

OF_NORMS = ("gain", "shift", "variance")


def told_roles(
    name: str, owner: nn.Module, parameter: str, ndim: int, override: Override, trace: Traced | None
) -> tuple[Role, ...]:
    """The role of each dimension: as declared; for a norm, by the type of its module; as a pass has shown; by
    the type of any other module; and otherwise "write".
    """
    declared = _declared(name, override)
    if declared is not None:
        if len(declared) != ndim:
            raise AnatomyError(f"roles of {name}: {len(declared)} are declared, and it has {ndim} dimensions")
        return declared
    by_type = known_roles(owner, parameter, ndim)
    seen = trace.roles.get(name) if trace is not None else None
    torn = trace is not None and name in trace.conflicts  # a tied matrix, which has another name in its other place
    if seen is None or (by_type is not None and (torn or any(role in OF_NORMS for role in by_type))):
        return by_type or ("write",) * ndim
    return tuple(role or (by_type[i] if by_type else "write") for i, role in enumerate(seen))


def is_guessed(name: str, owner: nn.Module, ndim: int, override: Override, trace: Traced | None) -> bool:
    """Whether nothing shows the roles of a tensor of several dimensions."""
    known = ndim < 2 or _declared(name, override) or known_roles(owner, owner_and_parameter(name)[1], ndim)
    return not known and not any(trace.roles.get(name, ()) if trace is not None else ())


def seen_layout(
    name: str, position: int, measured: Sequence[tuple[Sizes, int]], trace: Traced | None
) -> tuple[str, Layout] | None:
    """("trace", the layout that a pass has shown), if it has axes and the right size in every build."""
    layouts = trace.layouts.get(name) if trace is not None else None
    layout = layouts[position] if layouts is not None else None
    if layout is None or not layout.axes():
        return None
    return ("trace", layout) if all(layout.size(sizes) == size for sizes, size in measured) else None


def check_conflicts(trace: Traced, tensors: Mapping[str, TensorAnatomy]) -> None:
    """Raises AnatomyError for a tensor with a dimension along an axis that is both written and read (a matrix
    that is used twice).
    """
    tied = {tensor.tied_to for tensor in tensors.values()} | {t.name for t in tensors.values() if t.tied_to}
    for name, (place, roles) in trace.conflicts.items():
        tensor = tensors.get(name)
        if (
            tensor is not None
            and name not in tied
            and tensor.dimensions[place].layout.axes()
            and tensor.dimensions[place].source == "trace"
        ):
            raise AnatomyError(
                f"dimension {place} of {name} {tensor.shape} is both {roles} (it is "
                "used in two places), so no map of its units suits both; give the second place a parameter of its own, or "
                f"declare Anatomy.infer(..., roles={{{name!r}: (...)}})"
            )


def _declared(name: str, override: Override) -> tuple[Role, ...] | None:
    found = next((roles for pattern, roles in override.roles if re.fullmatch(pattern, name)), None)
    return found  # pyright: ignore[reportReturnType]
