"""`meristem average`."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from meristem.cli.output import Answer, calm_libraries, note, parents_and_out
from meristem.cli.parameters import Overwrite, PushRevision, PushTo, ShardSize, Trust
from meristem.cli.progress import bytes_bar
from meristem.cli.pushing import check_push, push
from meristem.errors import MeristemError


def average(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="A B ... OUT", help="Checkpoints, the oldest first, then the directory to write."),
    ],
    weights: Annotated[
        str, typer.Option(help="mean, 1-sqrt or cosine: the decay that they stand for; or numbers such as 0.2,0.3,0.5.")
    ] = "mean",
    max_shard_size: ShardSize = "5GB",
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    push_to_hub: PushTo = None,
    revision: PushRevision = None,
) -> Answer:
    """Average checkpoints of one run, tensor by tensor, in place of a decay of the learning rate."""
    from meristem.checkpoints.average import SHAPES
    from meristem.checkpoints.average import average as write_average
    from meristem.checkpoints.directory import check_place

    parents, out = parents_and_out("average", sources, "checkpoints")
    check_place(out, overwrite, parents)
    chosen: str | list[float] = weights
    if weights not in SHAPES:
        try:
            chosen = [float(weight) for weight in weights.split(",")]
        except ValueError as error:
            raise MeristemError(
                f"--weights is one of {', '.join(SHAPES)}, or numbers such as 0.3,0.7; got {weights!r}"
            ) from error
    where = (push_to_hub, revision)
    check_push(where)
    calm_libraries()
    bar = functools.partial(bytes_bar, f"writing {out}")
    flags = {"overwrite": overwrite, "trust_remote_code": trust_remote_code, "max_shard_size": max_shard_size}
    parts = write_average(parents, out, chosen, **flags, bar=bar)
    note(f"{out}: the mean of {len(parts)} checkpoints, weights {', '.join(f'{part:.3g}' for part in parts)}")
    return Answer({"out": out, "sources": parents, "weights": parts, "pushed": push(out, where)})
