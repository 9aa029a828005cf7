"""`meristem`: the verbs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from meristem.errors import MeristemError, PreservationError

app = typer.Typer(
    name="meristem",
    help="Train large neural networks cheaply: grow them from small ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Source = Annotated[str, typer.Argument(metavar="SRC", help="A Hugging Face model directory or hub name.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write; it must not exist.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace OUT if all that it holds is Meristem's or save_pretrained's.")
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Allow code that the checkpoint brings along.")]
Drop = Annotated[
    Optional[list[str]],
    typer.Option(
        "--drop", help="Tensors of SRC to leave out that its class has no place for, by name; * for anything."
    ),
]
Inputs = Annotated[
    Optional[Path],
    typer.Option(
        "--inputs",
        help="What the network is run on: a .safetensors, .npz or .json file of named tensors. Default: random.",
    ),
]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe file.")]
RunDirectory = Annotated[Optional[Path], typer.Option("--out", help="Where the nodes are kept. Default: runs/NAME.")]
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
        help="Of --like: whose config entries hold that are no sizes (rope theta, eps, activation).",
    ),
]
NumExperts = Annotated[Optional[int], typer.Option(help="Experts in each block (upcycle).")]
ExpertsPerToken = Annotated[Optional[int], typer.Option(help="Experts that a token gets (upcycle).")]
HiddenLayers = Annotated[Optional[int], typer.Option(help="Target number of layers.")]
Prove = Annotated[
    bool,
    typer.Option("--verify/--no-verify", help="Measure that the function is kept, block by block, before writing."),
]
ShardSize = Annotated[str, typer.Option(help="Of each weight file.")]
Sample = Annotated[
    Optional[int],
    typer.Option(
        "--sample",
        help="Also --verify sample=N: prove with N blocks (first, last, others at random), and every tensor by algebra.",
    ),
]
ProcessCount = Annotated[
    Optional[str],
    typer.Option(
        "--processes",
        help="Write with this many processes here, or as one of the ranks of torchrun or srun (ranks). Default: one.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the tensors, sizes and files; write nothing.")]
MoreOptions = Annotated[
    Optional[list[str]], typer.Option("--option", help="Any further option of the method, as name=value.")
]


OUT_OF_MEMORY = (
    "can't allocate memory|not enough memory|out of memory|Storage size calculation overflowed"  # torch's words
)
INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended
METHOD_FLAGS = (
    "width",
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "num_hidden_layers",
    "num_experts",
    "experts_per_token",
    "layers",
    "encoder_layers",
    "decoder_layers",
    "blocks",
    "noise",
    "seed",
    "tied",
)


def _options(context: typer.Context) -> dict[str, Any]:
    """The method's options among the flags of the present command."""
    from meristem.cli.commands import read_options

    given = {name: context.params.get(name) for name in METHOD_FLAGS}
    return read_options(given, context.params.get("option") or [], context.params.get("size") or [])


@app.command()
def inspect(source: Source, drop: Drop = None, trust_remote_code: Trust = False) -> None:
    """Show a network's axes, blocks and tensors, and how each is known."""
    from meristem.cli.commands import inspect as command

    command(source, trust_remote_code, drop or [])


@app.command()
def grow(
    context: typer.Context,
    source: Source,
    out: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="OUT", help="The directory to write; it must not exist. With --build, the only argument."
        ),
    ] = None,
    method: Annotated[
        Optional[str],
        typer.Option(help="The growth method; several, comma-separated, act in turn. Default: hypercloning."),
    ] = None,
    like: LikeTarget = None,
    take_target_fields: TakeFields = False,
    width: Annotated[Optional[str], typer.Option(help="Factor for every width axis.")] = None,
    depth: Annotated[Optional[str], typer.Option(help="Factor for the number of layers.")] = None,
    hidden_size: HiddenSize = None,
    intermediate_size: IntermediateSize = None,
    num_attention_heads: AttentionHeads = None,
    num_key_value_heads: KeyValueHeads = None,
    head_dim: HeadDim = None,
    vocab_size: VocabSize = None,
    max_position_embeddings: Positions = None,
    num_hidden_layers: HiddenLayers = None,
    num_experts: NumExperts = None,
    experts_per_token: ExpertsPerToken = None,
    layers: Layers = None,
    encoder_layers: OwnLayers = None,
    decoder_layers: OwnLayers = None,
    blocks: Blocks = None,
    size: Size = None,
    noise: Annotated[Optional[float], typer.Option(help="Symmetry-breaking noise (relative).")] = None,
    seed: Annotated[Optional[int], typer.Option(help="Seed of whatever the method draws.")] = None,
    tied: Annotated[Optional[str], typer.Option(help="A tied head: keep or untie.")] = None,
    option: MoreOptions = None,
    verify: Prove = True,
    sample: Sample = None,
    inputs: Inputs = None,
    max_shard_size: ShardSize = "5GB",
    processes: ProcessCount = None,
    build: Annotated[
        Optional[str],
        typer.Option(metavar="MODULE:FUNCTION", help="Grow a network of your own: what builds it. Runs that module."),
    ] = None,
    sizes: Annotated[
        Optional[list[str]],
        typer.Option(
            "--sizes", metavar="ARGUMENT=N", help="With --build: its arguments that may grow, as they are now."
        ),
    ] = None,
    depths: Annotated[
        Optional[list[str]],
        typer.Option(
            "--depths", metavar="ARGUMENT=N", help="With --build: its arguments that count blocks, as they are now."
        ),
    ] = None,
    weights: Annotated[
        Optional[Path], typer.Option("--weights", help="With --build: the network's weights, a .safetensors file.")
    ] = None,
    dry_run: DryRun = False,
    drop: Drop = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
) -> None:
    """Grow a model into a larger one, prove it, and write a plain Hugging Face directory, tensor by tensor."""
    from meristem.cli.commands import grow as command

    if build is not None:
        from meristem.cli.own import grow_own

        if out is not None:
            raise MeristemError("with --build there is no SRC: meristem grow --build module:function ... OUT")
        return grow_own(
            build,
            Path(source),
            sizes or [],
            depths or [],
            weights,
            inputs,
            method,
            _options(context),
            verify,
            overwrite,
        )
    if out is None:
        raise MeristemError("meristem grow takes SRC and OUT; only SRC was given")
    options, target = _options(context), (like, take_target_fields)
    flags = (overwrite, trust_remote_code, verify, max_shard_size, dry_run)
    return command(source, out, method, options, *flags, drop or [], inputs, target, processes, sample)


@app.command()
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
) -> None:
    """Cut a smaller model out of a larger one (weight selection)."""
    from meristem.cli.commands import grow as command

    options = _options(context)
    method = "weight_selection"
    command(source, out, method, options, overwrite, trust_remote_code, False, max_shard_size, dry_run, drop or [])


@app.command()
def fuse(
    sources: Annotated[
        list[str], typer.Argument(metavar="A B ... OUT", help="Two or more models, then the directory to write.")
    ],
    weights: Annotated[Optional[str], typer.Option(help="Each parent's share of the logits, such as 0.7,0.3.")] = None,
    norm: Annotated[str, typer.Option(help="plain (as published), equalised or grouped.")] = "plain",
    noise: Annotated[Optional[float], typer.Option(help="Symmetry-breaking noise of a self-fusion (relative).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    verify: Prove = True,
    allow_differences: Annotated[
        bool,
        typer.Option("--allow-differences", help="Fuse parents that compute differently, all as the first one does."),
    ] = False,
    experts: Annotated[
        bool, typer.Option("--experts", help="The parents' feed-forward blocks become experts, all else is averaged.")
    ] = False,
    experts_per_token: ExpertsPerToken = None,
    max_shard_size: ShardSize = "5GB",
    drop: Drop = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
) -> None:
    """Fuse several models of one type into one as wide as all together (Deep Fusion); the same one twice is self-fusion."""
    from meristem.cli.commands import fuse as command

    parents, out = sources[:-1], Path(sources[-1])
    command(
        parents,
        out,
        weights,
        norm,
        noise,
        seed,
        overwrite,
        trust_remote_code,
        verify,
        max_shard_size,
        drop or [],
        allow_differences,
        (experts, experts_per_token or 2),
    )


@app.command()
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
) -> None:
    """Average checkpoints of one run, tensor by tensor, in place of a decay of the learning rate."""
    from meristem.cli.average import average as command

    command(sources[:-1], Path(sources[-1]), weights, max_shard_size, overwrite, trust_remote_code)


@app.command()
def learn(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="adanet or energynet.")],
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="A file of values (CSV, also compressed, without a header, with other separators), or a data set of scikit-learn: digits, wine, ...",
        ),
    ],
    out: Out,
    target: Annotated[
        Optional[str], typer.Option(help="The column to predict, by name or number. Default: the last.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="classification or regression. Default: words and at most 20 whole numbers are classes.")
    ] = "auto",
    header: Annotated[
        Optional[bool],
        typer.Option("--header/--no-header", help="Whether the first row names the columns. Default: looks."),
    ] = None,
    separator: Annotated[
        Optional[str], typer.Option(help="Between values, such as ';' or '\\t'. Default: looks.")
    ] = None,
    option: MoreOptions = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    test_share: Annotated[float, typer.Option(help="The share of rows kept for the test.")] = 0.2,
    overwrite: Overwrite = False,
) -> None:
    """Learn a network's structure and weights from a table (AdaNet, EnergyNet)."""
    from meristem.cli.commands import learn as command
    from meristem.cli.commands import read_options

    reading = {"target": target, "task": task, "header": header, "separator": separator}
    command(method, table, out, reading, read_options({}, option or []), seed, test_share, overwrite)


@app.command()
def plan(
    context: typer.Context,
    source: Source,
    tokens: Annotated[
        str,
        typer.Option(
            help="Budget of training the target from scratch, such as 10M: tokens, or examples of what has no tokens."
        ),
    ],
    method: Annotated[
        Optional[str], typer.Option(help="The growth methods, comma-separated. Default: hypercloning.")
    ] = None,
    like: LikeTarget = None,
    width: Annotated[Optional[str], typer.Option(help="Factor for every width axis.")] = None,
    depth: Annotated[Optional[str], typer.Option(help="Factor for the number of layers.")] = None,
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
    small_tokens: Annotated[Optional[str], typer.Option(help="Tokens before growing. Default: G_stack's law.")] = None,
    sequence_length: Annotated[int, typer.Option(help="For counting attention.")] = 256,
    inputs: Inputs = None,
    drop: Drop = None,
    trust_remote_code: Trust = False,
) -> None:
    """What a growth route will cost, before spending it: FLOPs, memory, and when to grow."""
    from meristem.cli.commands import plan as command

    options, budget = _options(context), (tokens, small_tokens, sequence_length)
    command(source, method, options, *budget, trust_remote_code, drop or [], inputs, like)


@app.command()
def verify(
    small: Annotated[str, typer.Argument(metavar="SMALL", help="The model before.")],
    big: Annotated[str, typer.Argument(metavar="BIG", help="The model after.")],
    inputs: Inputs = None,
    sample: Sample = None,
    drop: Drop = None,
    trust_remote_code: Trust = False,
) -> None:
    """Measure whether two models compute the same function. Exit code 1 if they do not."""
    from meristem.cli.commands import verify as command

    raise typer.Exit(command(small, big, trust_remote_code, drop or [], inputs, sample))


@app.command()
def run(
    recipe: RecipeFile,
    out: RunDirectory = None,
    executor: ExecutorName = None,
    executor_option: ExecutorOptions = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep OUT/report.html up to date while the run goes on.")
    ] = False,
) -> None:
    """Run a recipe; finished nodes are not run again, killed ones resume."""
    from meristem.cli.commands import run as command

    command(recipe, out, executor, executor_option or [], watch)


@app.command()
def race(
    recipe: RecipeFile,
    out: RunDirectory = None,
    executor: ExecutorName = None,
    executor_option: ExecutorOptions = None,
) -> None:
    """Run a recipe and compare its challenger with its baseline: a table, race.png and race.json."""
    from meristem.cli.commands import race as command

    command(recipe, out, executor, executor_option or [])


@app.command()
def data(recipe: RecipeFile) -> None:
    """Prepare a recipe's data (tokenised once, for all nodes) and describe them: documents, tokens, bytes per token, splits."""
    from meristem.cli.commands import data as command

    command(recipe)


@app.command()
def diagnose(
    recipe: RecipeFile,
    node: Annotated[str, typer.Argument(metavar="NODE", help="A node that grows or fuses.")],
    bound: Annotated[float, typer.Option(help="Of the conflict per step at the junction.")] = 0.1,
    out: RunDirectory = None,
) -> None:
    """Measure a growth point: how much the training after it works against the one before, and the learning rate that bounds it."""
    from meristem.cli.commands import diagnose as command

    command(recipe, node, bound, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the demo's files go.")] = Path("demo"),
) -> None:
    """Train a small language model on real text, clone it, train on, and race it against training from scratch."""
    from meristem.cli.commands import demo as command

    command(out)


def main() -> None:
    """The entry point: every MeristemError becomes one clear message and exit code 2 (1 for a broken promise)."""
    try:
        app(_spelt_out(sys.argv[1:]))
    except MeristemError as error:
        _leave(str(error), 1 if isinstance(error, PreservationError) else 2)
    except OSError as error:
        _leave(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        _leave("there is not enough memory for this; ask for smaller sizes, or skip the proof with --no-verify", 2)
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != INTERRUPTED:
            raise
        _leave("interrupted; nothing is left half-written. Run the same command again", INTERRUPTED)


def _spelt_out(arguments: list[str]) -> list[str]:
    """`--verify sample=4` as `--sample 4`: a flag that may take a value would take whatever follows it."""
    spelt: list[str] = []
    for argument in arguments:
        value = argument.removeprefix("--verify=")
        if value.startswith("sample=") and (value != argument or spelt[-1:] == ["--verify"]):
            spelt = [*(spelt if value != argument else spelt[:-1]), "--sample", value.removeprefix("sample=")]
        else:
            spelt.append(argument)
    return spelt


def _leave(message: str, code: int) -> None:
    print(f"meristem: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
