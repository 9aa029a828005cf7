"""`meristem shrink`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from meristem.cli.examples import Looked
from meristem.cli.growing import Request, grow_checkpoint
from meristem.cli.options import SHRINKING, method_options
from meristem.cli.output import Answer
from meristem.cli.parameters import (
    Drop,
    DryRun,
    Out,
    Overwrite,
    PushRevision,
    PushTo,
    ShardSize,
    Source,
    Trust,
)
from meristem.cli.places import at_place
from meristem.errors import MeristemError


def shrink(
    context: typer.Context,
    source: Source,
    out: Out,
    method: Annotated[
        str,
        typer.Option(
            help="weight_selection (by the weights alone) or prune (by what the network does on --data or --inputs).",
            autocompletion=lambda incomplete: [name for name in SHRINKING if name.startswith(incomplete)],
        ),
    ] = "weight_selection",
    data: Annotated[
        Optional[str],
        typer.Option(
            "--data",
            help="For prune: a text file, a folder of text files, tokens, python-stdlib or the name of a data set.",
        ),
    ] = None,
    tokenizer: Annotated[Optional[str], typer.Option(help="The tokenizer for --data. Default: the one in SRC.")] = None,
    examples: Annotated[int, typer.Option(help="With --data: the number of sequences.")] = 128,
    sequence_length: Annotated[int, typer.Option(help="With --data: the tokens of each sequence.")] = 256,
    inputs: Annotated[
        Optional[Path],
        typer.Option(
            "--inputs", help="For prune: some hundred examples, in a .safetensors, .npz or .json file of named tensors."
        ),
    ] = None,
    max_shard_size: ShardSize = "5GB",
    dry_run: DryRun = False,
    drop: Drop = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    push_to_hub: PushTo = None,
    revision: PushRevision = None,
) -> Answer:
    """Cut a smaller model out of a larger one, by its weights or by what it does on data."""
    flags = (overwrite, trust_remote_code, False, max_shard_size, dry_run, drop or [])
    options, where = method_options(context), (push_to_hub, revision)
    looked = Looked(data, inputs, tokenizer, examples, sequence_length)
    if method not in SHRINKING:
        raise MeristemError(f"--method of shrink is one of {', '.join(SHRINKING)}, got {method!r}")
    if "batches" in options:
        raise MeristemError("--option batches= cannot hold data; give --data or --inputs")
    if method == "prune":
        looked.check()
    elif data or inputs or tokenizer:
        raise MeristemError("weight_selection uses no data; --data, --tokenizer and --inputs are for --method prune")

    def shrunk(place: Path) -> Answer:
        return grow_checkpoint(
            Request(
                source,
                place,
                method,
                options,
                *flags,
                inputs=str(inputs) if inputs else None,
                push=where,
                looked=looked,
            )
        )

    return at_place(out, shrunk, overwrite)
