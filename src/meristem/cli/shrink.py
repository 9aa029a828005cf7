"""`meristem shrink`."""

from __future__ import annotations

from pathlib import Path

import typer

from meristem.cli.growing import Request, grow_checkpoint
from meristem.cli.options import method_options
from meristem.cli.output import Answer
from meristem.cli.parameters import (
    AttentionHeads,
    Blocks,
    Drop,
    DryRun,
    HeadDim,
    HiddenLayers,
    HiddenSize,
    IntermediateSize,
    KeyValueHeads,
    MoreOptions,
    Out,
    Overwrite,
    Positions,
    PushRevision,
    PushTo,
    ShardSize,
    Size,
    Source,
    Trust,
    VocabSize,
)
from meristem.cli.places import at_place


def shrink(
    context: typer.Context,
    source: Source,
    out: Out,
    hidden_size: HiddenSize = None,
    intermediate_size: IntermediateSize = None,
    num_attention_heads: AttentionHeads = None,
    num_key_value_heads: KeyValueHeads = None,
    head_dim: HeadDim = None,
    vocab_size: VocabSize = None,
    max_position_embeddings: Positions = None,
    num_hidden_layers: HiddenLayers = None,
    blocks: Blocks = None,
    size: Size = None,
    option: MoreOptions = None,
    max_shard_size: ShardSize = "5GB",
    dry_run: DryRun = False,
    drop: Drop = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    push_to_hub: PushTo = None,
    revision: PushRevision = None,
) -> Answer:
    """Cut a smaller model out of a larger one (weight selection)."""
    flags = (overwrite, trust_remote_code, False, max_shard_size, dry_run, drop or [])
    options, where = method_options(context), (push_to_hub, revision)

    def shrunk(place: Path) -> Answer:
        return grow_checkpoint(Request(source, place, "weight_selection", options, *flags, push=where))

    return at_place(out, shrunk, overwrite)
