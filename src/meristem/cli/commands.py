"""What the verbs do, once their arguments are parsed."""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from meristem.errors import MeristemError, PreservationError

if TYPE_CHECKING:
    from meristem.checkpoints.shares import Processes
    from meristem.checkpoints.source import Source


def quiet() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


def read_options(given: dict[str, Any], extra: list[str], sizes: Sequence[str] = ()) -> dict[str, Any]:
    """Method options from flags, from `--option name=value` and `--size axis=number`; whole numbers and fractions are read as such.

    Raises:
        MeristemError: for a factor that is no whole number, or an option that is not name=value.
    """
    options = {name: value for name, value in given.items() if value is not None}
    for name in ("width", "depth"):
        if name in options:
            try:
                options[name] = int(options[name])
            except ValueError as error:
                raise MeristemError(f"--{name} must be a whole number of at least 1, got {options[name]}") from error
    targets = _named_values("--size", sizes)
    depths = {axis: size for axis, size in targets.items() if axis.endswith("layers")}
    widths = {axis: size for axis, size in targets.items() if axis not in depths}
    named = {option: found for option, found in (("sizes", widths), ("depths", depths)) if found}
    return {**options, **named, **_named_values("--option", extra)}


def _named_values(flag: str, entries: Sequence[str]) -> dict[str, Any]:
    """What a repeatable flag named: `name=value` each time."""
    options = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            raise MeristemError(f"{flag} takes name=value, got {entry!r}")
        options[name.replace("-", "_")] = _typed(value)
    return options


def _typed(value: str) -> Any:
    """A number or a truth value where it reads as one; otherwise the text."""
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def inspect(source: str, trust_remote_code: bool, drop: Sequence[str] = ()) -> None:
    quiet()
    from meristem.anatomy import Anatomy
    from meristem.anatomy.table import axis_rows, columns, tensor_rows
    from meristem.checkpoints import open_streamed
    from meristem.checkpoints.provenance import shares
    from meristem.checkpoints.source import find_source
    from meristem.growth import METHODS

    found = find_source(source, trust_remote_code)
    anatomy = Anatomy.of(open_streamed(found, trust_remote_code, drop))
    console = Console()
    axes = Table("axis", "size", "from", title=f"{source}: {anatomy.builder.model_type}")
    for row in axis_rows(anatomy):
        axes.add_row(*row)
    console.print(axes)
    print(columns([("tensor", "shape", "dimensions", "known by"), *tensor_rows(anatomy)]))
    for told in shares(found.path):
        console.print(told)
    print(f"growth methods: {', '.join(METHODS)}")


def grow(
    source: str,
    out: Path,
    method: str | None,
    options: dict[str, Any],
    overwrite: bool,
    trust: bool,
    prove: bool,
    max_shard_size: str,
    dry_run: bool,
    drop: Sequence[str] = (),
    inputs: Path | None = None,
    target: tuple[str | None, bool] = (None, False),
    processes: str | None = None,
    sample: int | None = None,
) -> None:
    from meristem.checkpoints.directory import check_place
    from meristem.checkpoints.shares import Processes

    who = Processes.parse(processes) if processes is not None else None

    if not dry_run:
        check_place(out, overwrite, [source])
    quiet()
    from meristem.checkpoints import open_streamed
    from meristem.checkpoints.distributed import is_distributed, open_distributed, write_distributed
    from meristem.checkpoints.record import growth_record, source_record
    from meristem.checkpoints.sharded_optimizer import read_sharded_optimizer
    from meristem.checkpoints.source import find_source
    from meristem.checkpoints.trainer_state import is_trainer_checkpoint, read_trainer_state
    from meristem.cli.inputs import read_inputs
    from meristem.growth import Growth
    from meristem.growth.optimizer import partly_new

    chosen = None if target[0] else _named_methods(method, options)
    given = read_inputs(inputs) if inputs else None
    console = Console(stderr=True)
    with console.status("planning and proving" if prove and not dry_run else "planning"):
        found = find_source(source, trust)
        sharded, resumable = is_distributed(found.path), is_trainer_checkpoint(found.path, drop)
        small, reader = open_distributed(found, trust, drop) if sharded else (open_streamed(found, trust, drop), None)
        shards = None if sharded else read_sharded_optimizer(found.path, small, drop)
        saved = read_trainer_state(found.path, small) if resumable else shards
        aimed = _like(small, method, options, target) if target[0] else None
        chosen = aimed.methods if aimed else chosen
        prove, later = prove and not dry_run, who is None and not sharded
        growth = Growth.of(small, chosen, verify=prove, sample=sample, inputs=given, later=later)
    if aimed is not None:
        _print_axes(growth, aimed, given)
    if dry_run:
        _print_files(growth.model, max_shard_size)
        return
    if who is not None:
        if reader is not None:
            raise MeristemError(
                "--processes is for checkpoints in safetensors; a distributed one is written by one process"
            )
        who = replace(who, of=[growth.methods, list(drop)])
    with ThreadPoolExecutor(1) as beside:  # the source is hashed while it is read anyway
        hashed = beside.submit(source_record, found)
        if reader is not None:
            with console.status("writing"):
                write_distributed(
                    growth, reader, out, lambda: growth_record(growth, found, drop, hashed.result()), overwrite
                )
        else:
            try:
                growth = _write_growth(
                    growth, out, hashed.result, found, drop, overwrite, max_shard_size, trust, saved, who
                )
            except PreservationError:
                if growth.pending is None:
                    raise
                with console.status(
                    "planning and proving once more"
                ):  # what a trial tells may help; or the error says more
                    growth = Growth.of(small, chosen, sample=sample, inputs=given)
                growth = _write_growth(
                    growth, out, hashed.result, found, drop, overwrite, max_shard_size, trust, saved, who
                )
    if who is not None and who.rank:
        return
    more = saved is not None
    before, after = (sum(p.numel() for p in model.parameters()) for model in (small, growth.model))
    resume = ", optimizer state grown: resume it with Trainer.train(resume_from_checkpoint=...)" if more else ""
    if saved is not None and saved.family.counts and partly_new(growth.plans):
        resume += " and callbacks=[ms.MissedStepsCallback()], since some tensors are partly new"
    names = ", ".join(recorded["method"] for recorded in growth.methods)
    print(f"{out}: {before:,} -> {after:,} parameters, {names}{resume}")
    for axis, places in growth.new_layers.items():
        print(f"new {axis.replace('_', ' ')}, counted from 0: {', '.join(map(str, places))}")
    if growth.certificate is not None:
        print(f"certificate: {growth.certificate.summary()}")


def _write_growth(
    growth: Any,
    out: Path,
    hashed: Callable[[], dict[str, Any]],
    source: Source,
    drop: Sequence[str],
    overwrite: bool,
    max_shard_size: str,
    trust: bool,
    saved: Any,
    processes: Processes | None,
) -> Any:
    """The growth as it is written: proved meanwhile, if that is left to do."""
    from meristem.checkpoints.record import growth_record
    from meristem.checkpoints.sharded_optimizer import grow_sharded_optimizer
    from meristem.checkpoints.trainer_state import TrainerState, grow_trainer_state

    grow_saved = grow_trainer_state if isinstance(saved, TrainerState) else grow_sharded_optimizer
    written = [growth]

    def prove() -> None:
        written[0] = growth.prove()

    _write(
        growth.model, out, lambda: growth_record(written[0], source, drop, hashed()), [source], overwrite, max_shard_size, trust,
        functools.partial(grow_saved, saved, growth) if saved is not None else None, processes,
        prove if growth.pending is not None else None,
    )  # fmt: skip
    return written[0]


def _named_methods(method: str | None, options: dict[str, Any]) -> list[Any]:
    from meristem.growth import METHODS
    from meristem.growth.options import build_methods

    return build_methods((method or "hypercloning").split(","), options, METHODS)


def _like(model: Any, method: str | None, options: dict[str, Any], target: tuple[str | None, bool]) -> Any:
    """The growth to a target, from what --like names."""
    from meristem.growth.like import OPTIONS, like

    name, take = target
    sizes = sorted(set(options) - OPTIONS)
    if method not in (None, "lemon") or sizes:
        given = f"--method {method}" if method not in (None, "lemon") else f"--{sizes[0].replace('_', '-')}"
        raise MeristemError(f"--like takes every size from its target; leave out {given}")
    return like(model, name, take_target_fields=take, **options)


def _print_axes(growth: Any, found: Any, inputs: Any = None) -> None:
    """Axis by axis what a growth to a target does, and what of the target's config it has not."""
    from meristem.growth.like import rows

    table = Table("axis", "from", "to", "rule", "exact", title="axes")
    for row in (row for plan in growth.plans for row in rows(plan, growth.source, inputs)):
        table.add_row(row.axis, f"{row.old:,}", f"{row.new:,}", row.rule, row.obstacle or "yes")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    if found.fields:
        whose = "the target's, so the function may change" if found.taken else "the source's"
        fields = Table("field", "source", "target", title=f"other fields that differ: the result has {whose}")
        for name, (ours, theirs) in found.fields.items():
            fields.add_row(name, str(ours), str(theirs))
        console.print(fields)


def _write(
    model: Any,
    out: Path,
    record: Callable[[], dict[str, Any]],
    sources: Sequence[Source],
    overwrite: bool,
    max_shard_size: str,
    trust: bool,
    more: Callable[[Path], None] | None = None,
    processes: Processes | None = None,
    prove: Callable[[], object] | None = None,
) -> None:
    """The model directory, under a progress bar; what is no weight is the first source's."""
    from meristem.checkpoints import write_model
    from meristem.cli.progress import bytes_bar

    bar = functools.partial(bytes_bar, f"writing {out}")
    paths = [source.path for source in sources]
    left = write_model(
        model, out, record, paths[0], overwrite, more, max_shard_size, bar, paths, trust, processes, prove
    )
    left = [name for name in left if not (out / name).exists()]  # a Trainer's files are written by `more`
    if left:
        print(
            f"meristem: left behind of {sources[0]}, being no part of the grown model: {', '.join(left)}",
            file=sys.stderr,
        )


def _print_files(model: Any, max_shard_size: str) -> None:
    """What would be written: every tensor, its size and its file."""
    from meristem.anatomy.table import columns
    from meristem.checkpoints.write import plan_files

    groups, shards = plan_files(model, max_shard_size)
    layout = {name: like for group in groups for name, like in group.layout.items()}
    rows = [("tensor", "shape", "dtype", "bytes", "file")]
    for name, (file, _) in sorted(shards.places.items(), key=lambda place: place[1]):
        tensor = layout[name]
        size = tensor.numel() * tensor.dtype.itemsize
        rows.append((name, str(tuple(tensor.shape)), str(tensor.dtype).removeprefix("torch."), f"{size:,}", file))
    print(columns(rows))
    print(f"{len(layout)} tensors, {shards.bytes:,} bytes in {len(shards.files)} files; nothing was written")


def fuse(
    sources: list[str],
    out: Path,
    weights: str | None,
    norm: str,
    noise: float | None,
    seed: int,
    overwrite: bool,
    trust: bool,
    prove: bool,
    max_shard_size: str,
    drop: Sequence[str] = (),
    allow_differences: bool = False,
    experts: tuple[bool, int] = (False, 2),
) -> None:
    if len(sources) < 2:
        raise MeristemError(f"fuse wants at least two models and OUT, got {' '.join([*sources, str(out)])}")
    from meristem.checkpoints.directory import check_place

    check_place(out, overwrite, sources)
    try:
        shares = [float(share) for share in weights.split(",")] if weights else None
    except ValueError as error:
        raise MeristemError(f"--weights wants numbers such as 0.7,0.3, got {weights!r}") from error
    quiet()
    from meristem.checkpoints import open_streamed
    from meristem.checkpoints.record import fusion_record
    from meristem.checkpoints.source import find_source
    from meristem.growth.deep_fusion import DeepFusion
    from meristem.growth.fuse import fuse_with_certificate

    method = DeepFusion(shares, norm, noise, seed, allow_differences, *experts)  # type: ignore[arg-type]
    method.convex(len(sources))
    console = Console(stderr=True)
    with console.status("planning and measuring" if prove else "planning"):
        found = {source: find_source(source, trust) for source in dict.fromkeys(sources)}
        opened = {name: open_streamed(source, trust, drop) for name, source in found.items()}
        fusion = fuse_with_certificate([opened[source] for source in sources], method, verify=prove)
    with ThreadPoolExecutor(1) as beside:  # the sources are hashed while they are read anyway
        parents = [found[source] for source in sources]
        record = beside.submit(fusion_record, fusion, parents, drop)
        _write(fusion.model, out, record.result, parents, overwrite, max_shard_size, trust)
    parameters = [sum(p.numel() for p in model.parameters()) for model in (*opened.values(), fusion.model)]
    print(f"{out}: {' + '.join(f'{n:,}' for n in parameters[:-1])} -> {parameters[-1]:,} parameters")
    if fusion.certificate is not None:
        kept = (
            "the parents' mean, proved"
            if fusion.exact
            else "gap to the parents' mean (a router weighs them, the rest is averaged)"
            if method.experts
            else "gap to the parents' mean (their norms see all units together)"
        )
        print(f"{kept}: {fusion.certificate.summary()}")


def learn(
    method: str,
    source: str,
    out: Path,
    reading: dict[str, Any],
    options: dict[str, Any],
    seed: int,
    test_share: float,
    overwrite: bool,
) -> None:
    try:
        import pandas  # noqa: F401
        import skops  # noqa: F401
    except ImportError as error:
        raise MeristemError(f"learning from tables needs {error.name}: pip install 'meristem-nn[adaptive]'") from None
    from meristem.adaptive.learn import learn as learn_table
    from meristem.adaptive.tables import open_table
    from meristem.adaptive.tables.columns import lines

    table = open_table(source, **reading)
    print("\n".join([*table.notes, *lines(table.columns)]), flush=True)
    learned = learn_table(method, table, out, options, seed, test_share, overwrite)
    metrics = learned.metrics
    print(learned.estimator.summary())
    print(
        f"{metrics['measure']} on {metrics['test_rows']} rows not seen: {metrics['test_score']:.4f} "
        f"(a linear model: {metrics['linear_test_score']:.4f})"
    )
    print(f"{out}: model/, encoder.skops, table.json, metrics.json, summary.txt, structure.png")


def plan(
    source: str,
    method: str | None,
    options: dict[str, Any],
    tokens: str,
    small_tokens: str | None,
    sequence_length: int,
    trust: bool = False,
    drop: Sequence[str] = (),
    inputs: Path | None = None,
    like: str | None = None,
) -> None:
    quiet()
    from meristem.anatomy import Anatomy
    from meristem.checkpoints import open_streamed
    from meristem.cli.inputs import read_inputs
    from meristem.recipes.costs import network_cost, planned_target, planning_inputs, routes
    from meristem.recipes.data_specs import parse_count

    budget, before = parse_count(tokens), parse_count(small_tokens) if small_tokens else None
    if sequence_length < 1:
        raise MeristemError(f"--sequence-length must be at least 1, got {sequence_length}")
    for name, count in (("--tokens", budget), ("--small-tokens", before)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise MeristemError(f"{name} takes a count such as 10M, got {count!r}")
    model = open_streamed(source, trust, drop)
    aimed = _like(model, method, options, (like, False)) if like else None
    chosen = list(aimed.methods) if aimed else _named_methods(method, options)
    anatomy = Anatomy.of(model)
    targets = (planned_target(model, methods, anatomy) for methods in ([], chosen))
    given = read_inputs(inputs) if inputs else planning_inputs(model, sequence_length)
    small, large = (network_cost(target, given) for target in targets)
    unit = "tokens" if "input_ids" in given else "examples"
    networks = Table("network", "parameters", f"FLOPs per {unit[:-1]}", "training memory", title="networks")
    for name, cost in (("small", small), ("large", large)):
        memory = f"{cost.training_bytes / 2**30:.2f} GiB"
        networks.add_row(name, f"{cost.parameters:,}", f"{cost.flops_per_token:.3e}", memory)
    table = Table("route", f"{unit} small", f"{unit} large", "FLOPs", "of scratch", title="routes")
    found = routes(small, large, budget, before)
    for route in found:
        share = f"{route.flops / found[0].flops:.0%}"
        table.add_row(
            route.name, f"{route.small_tokens:,.0f}", f"{route.large_tokens:,.0f}", f"{route.flops:.3e}", share
        )
    Console().print(networks, table)


def verify(
    small: str,
    big: str,
    trust_remote_code: bool,
    drop: Sequence[str] = (),
    inputs: Path | None = None,
    sample: int | None = None,
) -> int:
    quiet()
    from meristem.certificates import verify
    from meristem.checkpoints import open_streamed
    from meristem.checkpoints.record import recorded_methods
    from meristem.cli.inputs import read_inputs
    from meristem.growth.growth import sampled_certificate

    given = read_inputs(inputs) if inputs else None
    models = [open_streamed(source, trust_remote_code, drop) for source in (small, big)]
    if sample is None:
        certificate = verify(models[0], models[1], given)
    else:
        certificate = sampled_certificate(models[0], models[1], recorded_methods(Path(big)), sample, given)
    table = Table("measured", "value", title=f"{small} against {big}")
    for key, value in certificate.as_dict().items():
        table.add_row(key, f"{value:.3e}" if isinstance(value, float) else str(value))
    Console().print(table)
    return 0 if certificate.holds else 1


def run(file: Path, out: Path | None, executor: str | None, executor_options: list[str], watch: bool = False) -> None:
    quiet()
    from meristem.recipes.run import run
    from meristem.recipes.schema import load_recipe

    recipe, out = load_recipe(file), out or Path("runs") / file.stem
    results = run(recipe, out, executor=_executor(executor, executor_options, out), watch=watch)
    table = Table("node", "seed", "parameters", "examples", "TFLOPs", "seconds", "eval loss", title=str(file))
    for seed, nodes in results.items():
        for name, node in nodes.items():
            loss = f"{node.metrics['eval_loss']:.4f}" if node.metrics else ""
            table.add_row(
                name,
                str(seed),
                f"{node.parameters:,}",
                f"{node.examples:,}",
                f"{node.flops / 1e12:.2f}",
                f"{node.seconds:.1f}",
                loss,
            )
    Console().print(table)


def _executor(name: str | None, options: list[str], out: Path) -> Any:
    from meristem.recipes.executors import build_executor

    if name is None:
        if options:
            raise MeristemError("--executor-option goes with --executor local, ray or slurm")
        return None
    own = {"folder": out / "slurm"} if name == "slurm" else {}
    return build_executor(name, {**own, **_named_values("--executor-option", options)})


def race(file: Path, out: Path | None, executor: str | None = None, executor_options: Sequence[str] = ()) -> None:
    quiet()
    from meristem.checkpoints.write import write_json
    from meristem.recipes.figure import draw_race
    from meristem.recipes.race import race, report
    from meristem.recipes.run import run
    from meristem.recipes.schema import load_recipe

    recipe, out = load_recipe(file), out or Path("runs") / file.stem
    if recipe.race is None:
        raise MeristemError(f"{file} has no `race: {{challenger: ..., baseline: ...}}` section")
    results = run(recipe, out, executor=_executor(executor, list(executor_options), out))
    laps = race(recipe, results)
    write_json(out / "race.json", report(recipe, laps, machine()))
    draw_race(recipe, results, out / "race.png")
    _print_race(laps)
    print(f"{out / 'race.json'}  {out / 'race.png'}")


def data(file: Path) -> None:
    quiet()
    from meristem.recipes.describe import describe_data
    from meristem.recipes.schema import load_recipe

    table = Table("what", "value", title=f"data of {file}")
    for what, value in describe_data(load_recipe(file).data).items():
        table.add_row(what, value)
    Console().print(table)


def diagnose(file: Path, node: str, bound: float, out: Path | None) -> None:
    quiet()
    from meristem.recipes.diagnose import diagnose
    from meristem.recipes.schema import load_recipe

    if bound <= 0:
        raise MeristemError(f"--bound must be positive, got {bound}")
    found = diagnose(load_recipe(file), node, out or Path("runs") / file.stem, bound)
    table = Table("", *(f"seed {d.seed}" for d in found), title=f"{node}: the junction")
    rows = (
        ("loss of the parents", lambda d: f"{d.junction.loss_before:.4f}"),
        ("loss of the large network", lambda d: f"{d.junction.loss_after:.4f}"),
        ("|g|, gradient before", lambda d: f"{d.junction.gradient_before:.3e}"),
        ("|f|, gradient after", lambda d: f"{d.junction.gradient_after:.3e}"),
        ("cosine of g and f", lambda d: f"{d.junction.cosine:.3f}"),
        ("flatness before, |grad E|^2 / 4", lambda d: f"{d.junction.flatness_before:.3e}"),
        ("flatness after", lambda d: f"{d.junction.flatness_after:.3e}"),
        ("conflict |[g, f]| / |f|", lambda d: f"{d.junction.conflict:.3e}"),
        (
            f"learning rate that keeps it at {bound:g} per step ({found[0].optimizer})",
            lambda d: f"{d.learning_rate:.3e}",
        ),
        *(
            (f"steps of warm-up of {name} from there", lambda d, name=name: str(d.warmup[name]))
            for name in found[0].warmup
        ),
    )
    for label, cell in rows:
        table.add_row(label, *(cell(d) for d in found))
    Console().print(table)
    if found[0].optimizer == "adam":
        print(
            "measured in the coordinates in which Adam, with the second moments it has here, is plain gradient descent"
        )


DEMO_SHOWS = (
    "what this shows: a cloned network goes on from where the small one stood, and reaches the loss of the same network from random numbers "
    "with less compute. It does not show that growing pays: at so short a budget the small network, trained on alone, would end below "
    "both. docs/studies.md measures where it pays."
)


def demo(out: Path) -> None:
    race(Path(__file__).parent.parent / "recipes" / "demo.yaml", out)
    print(DEMO_SHOWS)


def machine() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{platform.machine()}, {device}, torch {torch.__version__}, Python {sys.version.split()[0]}"


def _print_race(laps: list[Any]) -> None:
    table = Table("", *(f"seed {lap.seed}" for lap in laps), title="race")
    rows = (
        ("baseline: final eval loss", lambda lap: f"{lap.baseline_loss:.4f}"),
        ("challenger: final eval loss", lambda lap: f"{lap.challenger_loss:.4f}"),
        ("baseline: total TFLOPs", lambda lap: f"{lap.baseline_flops / 1e12:.2f}"),
        ("challenger: total TFLOPs, parents included", lambda lap: f"{lap.challenger_flops / 1e12:.2f}"),
        ("loss at equal compute, challenger - baseline", lambda lap: _signed(lap)),
        ("compute saved to the baseline's final loss", lambda lap: _percent(lap.saving)),
        ("the same, small model given", lambda lap: _percent(lap.saving_if_parents_are_given)),
        ("training time saved to that loss, here", lambda lap: _percent(lap.time_saving)),
    )
    for label, cell in rows:
        table.add_row(label, *(cell(lap) for lap in laps))
    Console().print(table)


def _signed(lap: Any) -> str:
    return f"{lap.challenger_loss_at_equal_flops - lap.baseline_loss_at_equal_flops:+.4f}"


def _percent(share: float | None) -> str:
    return "not reached" if share is None else f"{share:.0%}"
