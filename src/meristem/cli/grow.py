"""`meristem grow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from meristem.cli.growing import Request, grow_checkpoint
from meristem.cli.options import check_methods, complete_method, method_options
from meristem.cli.output import Answer
from meristem.cli.parameters import (
    METHOD,
    OWN,
    Depth,
    Drop,
    DryRun,
    ExpertsPerToken,
    Inputs,
    Layers,
    LikeTarget,
    NumExperts,
    Overwrite,
    OwnLayers,
    ProcessCount,
    Prove,
    PushRevision,
    PushTo,
    Sample,
    ShardSize,
    Source,
    TakeFields,
    Trust,
    Width,
)
from meristem.cli.places import at_place
from meristem.errors import MeristemError


def grow(
    context: typer.Context,
    source: Source,
    out: Annotated[
        Optional[str],
        typer.Argument(
            metavar="OUT",
            help="The directory to write, or an address such as s3://bucket/model; it must not exist. With --build, the only argument.",
        ),
    ] = None,
    width: Width = None,
    depth: Depth = None,
    method: Annotated[
        Optional[str],
        typer.Option(
            help="The growth method, or several, comma-separated, applied in turn. Default: hypercloning.",
            autocompletion=complete_method,
        ),
    ] = None,
    like: LikeTarget = None,
    take_target_fields: TakeFields = False,
    num_experts: NumExperts = None,
    experts_per_token: ExpertsPerToken = None,
    layers: Layers = None,
    encoder_layers: OwnLayers = None,
    decoder_layers: OwnLayers = None,
    noise: Annotated[
        Optional[float], typer.Option(help="Symmetry-breaking noise (relative).", rich_help_panel=METHOD)
    ] = None,
    seed: Annotated[
        Optional[int], typer.Option(help="Seed of the method's random numbers.", rich_help_panel=METHOD)
    ] = None,
    tied: Annotated[Optional[str], typer.Option(help="A tied head: keep or untie.", rich_help_panel=METHOD)] = None,
    verify: Prove = True,
    sample: Sample = None,
    inputs: Inputs = None,
    max_shard_size: ShardSize = "5GB",
    processes: ProcessCount = None,
    build: Annotated[
        Optional[str],
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Grow a network of your own: the function that builds it. This runs the module.",
            rich_help_panel=OWN,
        ),
    ] = None,
    sizes: Annotated[
        Optional[list[str]],
        typer.Option(
            "--sizes",
            metavar="ARGUMENT=N",
            help="With --build: the function's arguments that may grow, with their present values.",
            rich_help_panel=OWN,
        ),
    ] = None,
    depths: Annotated[
        Optional[list[str]],
        typer.Option(
            "--depths",
            metavar="ARGUMENT=N",
            help="With --build: the function's arguments that count blocks, with their present values.",
            rich_help_panel=OWN,
        ),
    ] = None,
    weights: Annotated[
        Optional[Path],
        typer.Option(
            "--weights", help="With --build: the network's weights, a .safetensors file.", rich_help_panel=OWN
        ),
    ] = None,
    dry_run: DryRun = False,
    drop: Drop = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    push_to_hub: PushTo = None,
    revision: PushRevision = None,
) -> Answer:
    """Grow a model, prove the growth, and write a plain Hugging Face directory, tensor by tensor."""
    options = method_options(context)
    check_methods(method)
    if build is not None:
        from meristem.cli.own import grow_own

        if out is not None:
            raise MeristemError("with --build there is no SRC argument: meristem grow --build module:function ... OUT")
        if push_to_hub is not None:
            raise MeristemError(
                "--push-to-hub is for transformers checkpoints; a network of your own has no class there"
            )
        if sample is not None:
            raise MeristemError("a network of your own is proved whole; leave out --sample (--verify sample=N)")
        own = (sizes or [], depths or [], weights, inputs, method, options)
        return grow_own(build, Path(source), *own, verify, overwrite)
    if out is None:
        raise MeristemError("meristem grow takes SRC and OUT; only SRC was given")
    target, push = (like, take_target_fields), (push_to_hub, revision)
    flags = (overwrite, trust_remote_code, verify, max_shard_size, dry_run, drop or [])
    further = (inputs, target, processes, sample, push)
    return at_place(
        out,
        lambda place: grow_checkpoint(Request(source, place, method, options, *flags, *further)),
        overwrite,
        alone=processes != "ranks" and not str(processes).startswith("ray"),
    )
