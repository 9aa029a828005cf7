"""`meristem grow --build`: a network outside transformers, from its function and a safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meristem.cli.output import Answer, note
from meristem.errors import MeristemError


def grow_own(
    build: str,
    out: Path,
    sizes: Sequence[str],
    depths: Sequence[str],
    weights: Path | None,
    inputs: str | None,
    method: str | None,
    options: dict[str, Any],
    prove: bool,
    overwrite: bool,
) -> Answer:
    """Build the network, load its weights, infer its anatomy, grow it, prove the growth and write it.

    Raises:
        MeristemError: if an option is missing, or does not fit the network.
    """
    from meristem.anatomy import Anatomy
    from meristem.checkpoints.directory import check_place
    from meristem.checkpoints.own import builder_named, load_weights, write_own
    from meristem.cli.inputs import read_inputs
    from meristem.cli.options import named_methods
    from meristem.growth import Growth

    if weights is None or inputs is None or not sizes:
        raise MeristemError(
            "--build needs --sizes channels=16 (the arguments that may grow), --weights FILE.safetensors and --inputs FILE (keyword "
            "arguments of forward, on which the network is watched and proved)"
        )
    check_place(out, overwrite, [weights])
    make, own, lengths = builder_named(build), whole("--sizes", sizes), whole("--depths", depths)
    targets = options.pop("sizes", {})
    deeper = {**options.pop("depths", {}), **{a: n for a, n in targets.items() if a in lengths}}
    wider = {axis: size for axis, size in targets.items() if axis not in lengths}
    named = {name: found for name, found in (("sizes", wider), ("depths", deeper)) if found}
    methods, given = named_methods(method, {**options, **named}), read_inputs(Path(inputs))
    try:
        net = make(**own, **lengths)
    except TypeError as error:
        raise MeristemError(f"--build {build} does not take these sizes: {error}") from error
    net = load_weights(net, weights)
    growth = Growth.of(net, methods, anatomy=Anatomy.infer(make, own, lengths), inputs=given, verify=prove)
    write_own(growth, out, {"build": build, "sizes": own, "depths": lengths}, weights, overwrite)
    before, after = (sum(p.numel() for p in model.parameters()) for model in (net, growth.model))
    arguments = ", ".join(
        f"{a}={n}" for a, n in {**growth.anatomy.builder.sizes, **growth.anatomy.builder.depths}.items()
    )
    note(f"{out}: {before:,} -> {after:,} parameters; {build.partition(':')[2]}({arguments}) builds it")
    if growth.certificate is not None:
        note(f"certificate: {growth.certificate.summary()}")
    told = growth.certificate.as_dict() if growth.certificate is not None else None
    return Answer(
        {"out": out, "parameters": {"before": before, "after": after}, "methods": growth.methods, "certificate": told}
    )


def whole(flag: str, entries: Sequence[str]) -> dict[str, int]:
    """The whole numbers in `name=number` entries, by name. An entry can hold several, separated by commas.

    Raises:
        MeristemError: for other text.
    """
    found = {}
    for entry in (part for text in entries for part in text.split(",")):
        name, equals, value = entry.strip().partition("=")
        if not (name.isidentifier() and equals and value.isdecimal() and int(value) > 0):
            raise MeristemError(f"{flag} takes name=number, such as channels=16; got {entry!r}")
        found[name] = int(value)
    return found
