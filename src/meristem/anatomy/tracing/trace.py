"""From watched passes in several sizes to the role and the layout of every dimension of every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, lcm
from typing import Any

import torch

from meristem.algebra import Layout
from meristem.anatomy.axis_ref import part_of
from meristem.anatomy.builder import Builder
from meristem.anatomy.inputs.outputs import moved_to
from meristem.anatomy.modes import evaluating, step_by_step
from meristem.anatomy.roles import Role
from meristem.anatomy.tracing.space import Resolved
from meristem.anatomy.tracing.watch import Watch
from meristem.errors import MeristemError, first_line

Sizes = Mapping[str, int]
Measured = Sequence[tuple[Sizes, Watch]]


@dataclass(frozen=True)
class Traced:
    """What passes have shown.

    Attributes:
        roles: {tensor: the role of each dimension}. None where nothing was seen.
        layouts: {tensor: the layout of each dimension}. None where the trace does not show it.
        groups: {axis: in how many parts it is divided somewhere}.
        measured: {axis: the operator outside of norms that measures its units together}.
        conflicts: {tensor: (dimension, the roles that were seen)} of those that are both read and written.
    """

    roles: Mapping[str, tuple[Role | None, ...]] = field(default_factory=dict)
    layouts: Mapping[str, tuple[Layout | None, ...]] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    measured: Mapping[str, str] = field(default_factory=dict)
    conflicts: Mapping[str, tuple[int, str]] = field(default_factory=dict)


def traced(builder: Builder, inputs: Mapping[str, Any]) -> Traced:
    """Run what `builder` builds, in its sizes and with each axis doubled, and follow every dimension.

    Args:
        builder: the builder of the network.
        inputs: keyword arguments of forward.

    Raises:
        MeristemError: if the network does not run on them.
    """
    measured: list[tuple[Sizes, Watch]] = []
    for sizes in (dict(builder.sizes), *builder.probes()):
        try:
            measured.append((sizes, _watched(builder, sizes, inputs)))
        except Exception as error:
            if not measured:
                raise MeristemError(
                    f"what {builder.model_type}() builds does not run on inputs= ({', '.join(inputs)}): {first_line(error)}"
                ) from error
    return _told(builder.sizes, measured)


def _watched(builder: Builder, sizes: Sizes, inputs: Mapping[str, Any]) -> Watch:
    """A pass without numbers if that is possible, and otherwise with random weights."""
    try:
        return _pass(builder, sizes, inputs, "meta")
    except Exception:  # shapes that depend on numbers, tensors that are made on the CPU
        return _pass(builder, sizes, inputs, "cpu")


def _pass(builder: Builder, sizes: Sizes, inputs: Mapping[str, Any], device: str) -> Watch:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        model = builder.build(sizes, builder.depths)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    given = {name: moved_to(value, torch.device(device), dtype) for name, value in inputs.items()}
    watch = Watch(model)
    handles = list(watch.hooks(model))
    try:
        with evaluating(model), step_by_step(), torch.no_grad(), torch.random.fork_rng(devices=[]), watch:
            model(**given)
    finally:
        for handle in handles:
            handle.remove()
    return watch


def _told(sizes: Sizes, measured: Measured) -> Traced:
    _, base = measured[0]
    layouts, roles, conflicts = {}, {}, {}
    groups: dict[str, int] = {}
    for name, dims in base.parameters.items():
        seen = [(s, w.parameters[name]) for s, w in measured if name in w.parameters]
        found = []
        for place in range(len(dims)):
            forms = [(s, w.space.resolved(w.parameters[name][place])) for s, w in measured if name in w.parameters]
            layout = _layout(sizes, forms, groups) if len(seen) == len(measured) else None
            found.append(layout.simplified() if layout is not None else None)
        layouts[name] = tuple(found)
        roles[name] = tuple(_role(votes) for votes in base.votes[name])
        torn = [(i, v) for i, v in enumerate(base.votes[name]) if {"read", "write"} <= v]
        if torn:
            conflicts[name] = (torn[0][0], "read and written")
    return Traced(roles, layouts, groups, _axes_measured(sizes, measured), conflicts)


def _role(votes: set[Role]) -> Role | None:
    """ "read" takes precedence. A gain is one only if it has no other role. "write" if it is added or
    produced.
    """
    for role in ("read", "write", "gain", "fixed"):
        if role in votes:
            return role  # pyright: ignore[reportReturnType]
    return None


def _layout(sizes: Sizes, forms: Sequence[tuple[Sizes, Resolved]], groups: dict[str, int]) -> Layout | None:
    """The layout of a dimension from its atoms in every pass. None if these do not correspond, or have no
    explanation.
    """
    if len({len(form) for _, form in forms}) != 1:
        return None
    if not forms[0][1]:
        return Layout.parse(1)
    factors: list[Any] = []
    for atoms in zip(*(form for _, form in forms), strict=True):
        own = [(s, atom) for (s, _), atom in zip(forms, atoms, strict=True)]
        if all(isinstance(atom, int) for atom in atoms):
            term = _term(own, groups)  # pyright: ignore[reportArgumentType]
            if term is None:
                return None
            factors += term
        elif any(isinstance(atom, int) for atom in atoms) or len({len(atom) for atom in atoms}) != 1:  # pyright: ignore
            return None
        else:
            terms = [_layout(sizes, [(s, atom[i]) for s, atom in own], groups) for i in range(len(atoms[0]))]  # pyright: ignore
            if any(term is None for term in terms):
                return None
            factors.append(_added(terms))  # pyright: ignore[reportArgumentType]
    if len(factors) == 1 and isinstance(factors[0], Layout):
        return factors[0]
    kept = [f for f in factors if f != 1] or [1]
    return Layout((tuple(kept),))


def _added(terms: Sequence[Layout]) -> Layout:
    """A sum of layouts."""
    return Layout(tuple(t for layout in terms for t in layout.terms))


def _term(atoms: Sequence[tuple[Sizes, int]], groups: dict[str, int]) -> list[str | int] | None:
    """A number, a multiple of an axis, a part of one, or a product of two, that has the sizes of an atom."""
    (base, size) = atoms[0]
    if all(other == size for _, other in atoms):
        return [size]
    for axis in base:
        if all(other * base[axis] == size * s[axis] for s, other in atoms):
            common = gcd(size, base[axis])
            times, parts = size // common, base[axis] // common
            if parts > 1 and times > 1:  # 8 / 3 of an axis has units of its own, and cuts nothing into thirds
                return None
            if parts > 1:
                groups[axis] = lcm(parts, groups.get(axis, 1))
                return [part_of(axis, parts)]
            return [times, axis] if times > 1 else [axis]
    for a in base:
        for b in base:
            if a < b and size % (base[a] * base[b]) == 0:
                times = size // (base[a] * base[b])
                if all(other == times * s[a] * s[b] for s, other in atoms):
                    return [times, a, b] if times > 1 else [a, b]
    return None


def _axes_measured(sizes: Sizes, measured: Measured) -> dict[str, str]:
    """Axes among the dimensions that something outside of norms combines, in the same way in every pass."""
    found: dict[str, str] = {}
    for number, (name, dims) in enumerate(measured[0][1].measured):
        others = [w.measured[number] for _, w in measured if number < len(w.measured)]
        if len(others) < len(measured) or any(other[0] != name or len(other[1]) != len(dims) for other in others):
            continue
        for place in range(len(dims)):
            forms = [(s, w.space.resolved(w.measured[number][1][place])) for s, w in measured]
            layout = _layout(sizes, forms, {})
            for axis in layout.axes() if layout is not None else ():
                found.setdefault(axis, name)
    return found
