"""`meristem average`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meristem.cli.output import Answer, calm_libraries, note, parents_and_out
from meristem.cli.parameters import Overwrite, PushRevision, PushTo, ShardSize, Trust
from meristem.cli.places import at_place
from meristem.cli.progress import bytes_bar, step
from meristem.cli.pushing import check_push, push
from meristem.cli.writing import say_left
from meristem.errors import MeristemError

if TYPE_CHECKING:
    from meristem.checkpoints.source import Source


def average(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="A B ... OUT", help="The checkpoints, oldest first, then the directory to write."),
    ],
    weights: Annotated[
        str,
        typer.Option(
            help="mean, 1-sqrt or cosine (the decay schedule that the mean imitates), or numbers such as 0.2,0.3,0.5."
        ),
    ] = "mean",
    allow_differences: Annotated[
        bool,
        typer.Option(
            "--allow-differences",
            help="Average models whose configs compute differently or whose tokenizers give the same ids to other tokens.",
        ),
    ] = False,
    max_shard_size: ShardSize = "5GB",
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    push_to_hub: PushTo = None,
    revision: PushRevision = None,
) -> Answer:
    """Average checkpoints of one run, tensor by tensor, instead of decaying the learning rate."""
    from meristem.checkpoints.decay_weights import SHAPES, shares
    from meristem.checkpoints.directory import check_place, check_shard_size
    from meristem.checkpoints.source import find_source

    parents, out = parents_and_out("average", sources, "checkpoints")
    chosen: str | list[float] = weights
    if weights not in SHAPES:
        try:
            chosen = [float(weight) for weight in weights.split(",")]
        except ValueError as error:
            raise MeristemError(
                f"--weights is one of {', '.join(SHAPES)}, or numbers such as 0.3,0.7; got {weights!r}"
            ) from error
    shares(len(parents), chosen)
    where = (push_to_hub, revision)
    check_push(where)
    calm_libraries()
    flags = {"overwrite": overwrite, "trust_remote_code": trust_remote_code, "max_shard_size": max_shard_size}
    allowed = {"allow_differences": allow_differences}

    def averaged(place: Path) -> Answer:
        check_place(place, overwrite, parents)
        check_shard_size(max_shard_size)
        with step("reading the checkpoints"):
            found = [find_source(parent, trust_remote_code) for parent in parents]

            from meristem.checkpoints.average import average as write_average

        bar = functools.partial(bytes_bar, f"writing {place}")

        def tell(left: Sequence[str], found: Sequence[Source]) -> None:
            say_left(left, place, found)

        parts = write_average(found, place, chosen, **flags, **allowed, bar=bar, tell=tell)
        note(f"{place}: the mean of {len(parts)} checkpoints, weights {', '.join(f'{part:.3g}' for part in parts)}")
        return Answer({"out": place, "sources": parents, "weights": parts, "pushed": push(place, where)})

    return at_place(out, averaged, overwrite)
