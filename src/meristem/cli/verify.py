"""`meristem verify`: whether two models compute the same function."""

from __future__ import annotations

from typing import Annotated

import typer

from meristem.cli.output import Answer, calm_libraries
from meristem.cli.parameters import Drop, Inputs, Sample, Trust
from meristem.cli.progress import step


def verify(
    small: Annotated[str, typer.Argument(metavar="SMALL", help="The model before.")],
    big: Annotated[str, typer.Argument(metavar="BIG", help="The model after.")],
    inputs: Inputs = None,
    sample: Sample = None,
    drop: Drop = None,
    trust_remote_code: Trust = False,
) -> Answer:
    """Measure whether two models compute the same function. Exit code 1 if they do not."""
    calm_libraries()
    from rich.console import Console
    from rich.table import Table

    with step("proving"):
        from meristem.checkpoints.source import find_source

        found = [find_source(source, trust_remote_code) for source in (small, big)]

        from meristem.certificates import verify as measure
        from meristem.checkpoints import open_streamed
        from meristem.checkpoints.record import recorded_methods
        from meristem.cli.inputs import inputs_for
        from meristem.growth.growth import sampled_certificate

        models = [open_streamed(source, trust_remote_code, drop or []) for source in found]
        given = inputs_for(inputs, found[0], models[0])
        if sample is None:
            certificate = measure(models[0], models[1], given)
        else:
            certificate = sampled_certificate(models[0], models[1], recorded_methods(found[1].path), sample, given)
    table = Table("measured", "value", title=f"{small} against {big}")
    for key, value in certificate.as_dict().items():
        if value is not None:
            table.add_row(key, f"{value:.3e}" if isinstance(value, float) else str(value))
    Console().print(table)
    return Answer({"small": small, "big": big, "certificate": certificate.as_dict()}, 0 if certificate.holds else 1)
