"""The arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# The panels of help. Each is a table of its own, so that the names of its options fit on a line of 80 columns.
TARGET = "Sizes of the result"
LIKE = "Sizes from another config"
METHOD = "Options of the method"
PROOF = "Proof"
FILES = "Reading and writing"
OWN = "A network of your own"

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
    bool,
    typer.Option(
        "--overwrite", help="Replace OUT if Meristem or save_pretrained wrote everything in it.", rich_help_panel=FILES
    ),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint contains.")]
Drop = Annotated[
    Optional[list[str]],
    typer.Option(
        "--drop",
        help="Tensors of SRC to drop, by name, if its class does not use them; * matches anything.",
        rich_help_panel=FILES,
    ),
]
Inputs = Annotated[
    Optional[str],
    typer.Option(
        "--inputs",
        help="Inputs of the proof: a .safetensors, .npz or .json file of named tensors; or text for the model's tokenizer: a file, "
        "a folder, a data set's name. Default: random.",
        rich_help_panel=PROOF,
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
HiddenSize = Annotated[Optional[int], typer.Option(help="Target hidden size.", rich_help_panel=TARGET)]
IntermediateSize = Annotated[Optional[int], typer.Option(help="Target feed-forward size.", rich_help_panel=TARGET)]
AttentionHeads = Annotated[Optional[int], typer.Option(help="Target attention heads.", rich_help_panel=TARGET)]
KeyValueHeads = Annotated[Optional[int], typer.Option(help="Target key-value heads.", rich_help_panel=TARGET)]
HeadDim = Annotated[Optional[int], typer.Option(help="Target size of a head.", rich_help_panel=TARGET)]
VocabSize = Annotated[Optional[int], typer.Option(help="Target vocabulary.", rich_help_panel=TARGET)]
Positions = Annotated[Optional[int], typer.Option(help="Target number of learned positions.", rich_help_panel=TARGET)]
Layers = Annotated[
    Optional[str],
    typer.Option(help="Old layers in their new order, such as 0-23,8-31 (method stacking).", rich_help_panel=METHOD),
]
OwnLayers = Annotated[
    Optional[str], typer.Option(help="The same for this list of blocks only.", rich_help_panel=METHOD)
]
Blocks = Annotated[
    Optional[str],
    typer.Option(
        help="The lists of blocks whose depth changes: encoder, decoder, ... Default: all.", rich_help_panel=TARGET
    ),
]
Size = Annotated[
    Optional[list[str]],
    typer.Option(
        "--size",
        metavar="AXIS=N",
        help="Target of any axis or list of blocks by its name in `meristem inspect`: encoder_ffn=2048, decoder_layers=6.",
        rich_help_panel=TARGET,
    ),
]
LikeTarget = Annotated[
    Optional[str],
    typer.Option(
        "--like",
        metavar="TARGET",
        help="A config.json, model directory or hub name: grow every axis to its size there.",
        rich_help_panel=LIKE,
    ),
]
TakeFields = Annotated[
    bool,
    typer.Option(
        "--take-target-fields/--keep-source-fields",
        help="With --like: take config entries that are not sizes (rope theta, eps, activation) from the target or from the source.",
        rich_help_panel=LIKE,
    ),
]
NumExperts = Annotated[Optional[int], typer.Option(help="Experts in each block (upcycle).", rich_help_panel=METHOD)]
ExpertsPerToken = Annotated[
    Optional[int], typer.Option(help="Experts for each token (upcycle).", rich_help_panel=METHOD)
]
HiddenLayers = Annotated[Optional[int], typer.Option(help="Target number of layers.", rich_help_panel=TARGET)]
Prove = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Measure that the function is kept, block by block, before writing.",
        rich_help_panel=PROOF,
    ),
]
ShardSize = Annotated[str, typer.Option(help="The largest size of a weight file.", rich_help_panel=FILES)]
Sample = Annotated[
    Optional[int],
    typer.Option(
        "--sample",
        min=2,
        metavar="N",
        help="Prove with N blocks (first, last, others by --seed, one of each further kind), and check every tensor by algebra. "
        "Also written --verify sample=N.",
        rich_help_panel=PROOF,
    ),
]
ProcessCount = Annotated[
    Optional[str],
    typer.Option(
        "--processes",
        help="Write with this many processes here, as one of the ranks of torchrun or srun (ranks), or with tasks of a Ray cluster (ray, ray:N). Default: one.",
        rich_help_panel=FILES,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the tensors, sizes and files; write nothing.", rich_help_panel=FILES)
]
MoreOptions = Annotated[
    Optional[list[str]],
    typer.Option("--option", help="Another option of the method, as name=value.", rich_help_panel=METHOD),
]
PushTo = Annotated[
    Optional[str],
    typer.Option(
        "--push-to-hub",
        metavar="REPO",
        help="Upload the result to this repository of the hub (owner/name), with your token.",
        rich_help_panel=FILES,
    ),
]
PushRevision = Annotated[
    Optional[str],
    typer.Option(
        "--revision", help="With --push-to-hub: the branch to upload to. Default: main.", rich_help_panel=FILES
    ),
]

Width = Annotated[Optional[str], typer.Option(help="Factor for every width axis.", rich_help_panel=TARGET)]
Depth = Annotated[Optional[str], typer.Option(help="Factor for the number of layers.", rich_help_panel=TARGET)]

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
