"""The arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A Hugging Face model directory, hub name (owner/name, or owner/name@revision), or address such as s3://bucket/model.",
    ),
]
Out = Annotated[
    str,
    typer.Argument(
        metavar="OUT", help="The directory to write, or an address such as s3://bucket/model; it must not exist."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace OUT if Meristem or save_pretrained wrote everything in it.")
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint contains.")]
Drop = Annotated[
    Optional[list[str]],
    typer.Option("--drop", help="Tensors of SRC to drop, by name, if its class does not use them; * matches anything."),
]
Inputs = Annotated[
    Optional[str],
    typer.Option(
        "--inputs",
        help="Inputs of the proof: a .safetensors, .npz or .json file of named tensors; or text for the model's tokenizer: a file, "
        "a folder, a data set's name. Default: random.",
    ),
]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe file.")]
RunDirectory = Annotated[Optional[Path], typer.Option("--out", help="The directory of the nodes. Default: runs/NAME.")]
ExecutorName = Annotated[
    Optional[str],
    typer.Option(
        "--executor", help="Where nodes run, several at a time: local, ray or slurm. Default: one by one, here."
    ),
]
ExecutorOptions = Annotated[
    Optional[list[str]],
    typer.Option("--executor-option", help="An option of the executor, as name=value: slots=4, retries=3, address=..."),
]
HiddenSize = Annotated[Optional[int], typer.Option(help="Target hidden size.")]
IntermediateSize = Annotated[Optional[int], typer.Option(help="Target feed-forward size.")]
AttentionHeads = Annotated[Optional[int], typer.Option(help="Target attention heads.")]
KeyValueHeads = Annotated[Optional[int], typer.Option(help="Target key-value heads.")]
HeadDim = Annotated[Optional[int], typer.Option(help="Target size of a head.")]
VocabSize = Annotated[Optional[int], typer.Option(help="Target vocabulary.")]
Positions = Annotated[Optional[int], typer.Option(help="Target number of learned positions.")]
Layers = Annotated[
    Optional[str], typer.Option(help="Old layers in their new order, such as 0-23,8-31 (method stacking).")
]
OwnLayers = Annotated[Optional[str], typer.Option(help="The same for this list of blocks only.")]
Blocks = Annotated[
    Optional[str], typer.Option(help="The lists of blocks whose depth changes: encoder, decoder, ... Default: all.")
]
Size = Annotated[
    Optional[list[str]],
    typer.Option(
        "--size",
        metavar="AXIS=N",
        help="Target of any axis or list of blocks by its name in `meristem inspect`: encoder_ffn=2048, decoder_layers=6.",
    ),
]
LikeTarget = Annotated[
    Optional[str],
    typer.Option(
        "--like",
        metavar="TARGET",
        help="A config.json, model directory or hub name: grow every axis to its size there.",
    ),
]
TakeFields = Annotated[
    bool,
    typer.Option(
        "--take-target-fields/--keep-source-fields",
        help="With --like: take config entries that are not sizes (rope theta, eps, activation) from the target or from the source.",
    ),
]
NumExperts = Annotated[Optional[int], typer.Option(help="Experts in each block (upcycle).")]
ExpertsPerToken = Annotated[Optional[int], typer.Option(help="Experts for each token (upcycle).")]
HiddenLayers = Annotated[Optional[int], typer.Option(help="Target number of layers.")]
Prove = Annotated[
    bool,
    typer.Option("--verify/--no-verify", help="Measure that the function is kept, block by block, before writing."),
]
ShardSize = Annotated[str, typer.Option(help="The largest size of a weight file.")]
Sample = Annotated[
    Optional[int],
    typer.Option(
        "--sample",
        help="Prove with N blocks (first, last, others at random), and check every tensor by algebra. Also written --verify sample=N.",
    ),
]
ProcessCount = Annotated[
    Optional[str],
    typer.Option(
        "--processes",
        help="Write with this many processes here, as one of the ranks of torchrun or srun (ranks), or with tasks of a Ray cluster (ray, ray:N). Default: one.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the tensors, sizes and files; write nothing.")]
MoreOptions = Annotated[
    Optional[list[str]], typer.Option("--option", help="Another option of the method, as name=value.")
]
PushTo = Annotated[
    Optional[str],
    typer.Option(
        "--push-to-hub",
        metavar="REPO",
        help="Upload the result to this repository of the hub (owner/name), with your token.",
    ),
]
PushRevision = Annotated[
    Optional[str], typer.Option("--revision", help="With --push-to-hub: the branch to upload to. Default: main.")
]

# What every command takes that plans a network of another size; `options.method_options` reads them from the command's context.
SIZES = {
    "hidden_size": HiddenSize,
    "intermediate_size": IntermediateSize,
    "num_attention_heads": AttentionHeads,
    "num_key_value_heads": KeyValueHeads,
    "head_dim": HeadDim,
    "vocab_size": VocabSize,
    "max_position_embeddings": Positions,
    "num_hidden_layers": HiddenLayers,
    "blocks": Blocks,
    "size": Size,
    "option": MoreOptions,
}
