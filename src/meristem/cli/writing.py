"""Writing a result, and printing what would be written."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meristem.checkpoints.shares import Processes
    from meristem.checkpoints.source import Source


def write(
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
    seen: Callable[[float], None] | None = None,
) -> list[str]:
    """Write the model directory, under a progress bar. Everything except weights comes from the first source.

    Args:
        seen: a function that is called with the share of the weights, from 0 to 1, that is written.
    """
    from meristem.checkpoints import write_model
    from meristem.cli.progress import bytes_bar

    bar = functools.partial(bytes_bar, f"{'proving and writing' if prove else 'writing'} {out}")
    bar = functools.partial(_seen_by, bar, seen) if seen is not None else bar
    paths = [source.path for source in sources]
    left = write_model(
        model, out, record, paths[0], overwrite, more, max_shard_size, bar, paths, trust, processes, prove
    )
    return say_left(left, out, sources)


@contextlib.contextmanager
def _seen_by(
    bar: Callable[[int], AbstractContextManager[Callable[[int], None]]], seen: Callable[[float], None], total: int
) -> Iterator[Callable[[int], None]]:
    """A bar that also calls another function."""
    done = 0
    with bar(total) as shown:

        def tell(count: int) -> None:
            nonlocal done
            done += count
            shown(count)
            seen(done / max(1, total))

        yield tell


def say_left(left: Sequence[str], out: Path, sources: Sequence[Source]) -> list[str]:
    """Print which files of the first source were not copied, and where files of the other sources differ.
    Returns the former.
    """
    from meristem.checkpoints.companions import CARD, differing

    left = [name for name in left if name == CARD or not (out / name).exists()]  # a Trainer's files are written too
    if others := [name for name in left if name != CARD]:
        print(
            f"meristem: not copied from {sources[0]}, since not part of the new model: {', '.join(others)}",
            file=sys.stderr,
        )
    if any(name.endswith(".py") for name in left):
        print(
            "meristem: the entries of its files that name this code are not copied either; --trust-remote-code copies them all",
            file=sys.stderr,
        )
    if CARD in left:
        print(
            f"meristem: {CARD} of {sources[0]} is not copied: the result has a model card of its own", file=sys.stderr
        )
    for source in sources[1:]:
        others = differing(sources[0].path, source.path)
        if others:
            print(
                f"meristem: {source} and {sources[0]} differ in {', '.join(others)}; the latter's are copied",
                file=sys.stderr,
            )
    return list(left)


def print_files(model: Any, max_shard_size: str) -> dict[str, Any]:
    """Print what would be written: every tensor, its size and its file."""
    from meristem.anatomy.table import columns
    from meristem.checkpoints.write import plan_files

    groups, shards = plan_files(model, max_shard_size)
    layout = {name: like for group in groups for name, like in group.layout.items()}
    found: list[tuple[Any, ...]] = []
    rows = [("tensor", "shape", "dtype", "bytes", "file")]
    for name, (file, _) in sorted(shards.places.items(), key=lambda place: place[1]):
        tensor = layout[name]
        size = tensor.numel() * tensor.dtype.itemsize
        found.append((name, list(tensor.shape), str(tensor.dtype).removeprefix("torch."), size, file))
        rows.append((name, str(tuple(tensor.shape)), str(tensor.dtype).removeprefix("torch."), f"{size:,}", file))
    print(columns(rows))
    print(f"{len(layout)} tensors, {shards.bytes:,} bytes in {len(shards.files)} files; nothing was written")
    names = ("tensor", "shape", "dtype", "bytes", "file")
    return {
        "tensors": [dict(zip(names, row, strict=True)) for row in found],
        "bytes": shards.bytes,
        "files": len(shards.files),
    }


def print_axes(growth: Any, found: Any, inputs: Any = None) -> None:
    """Print what a growth to a target does to each axis, and which entries of the target's config it does not
    take.
    """
    from rich.console import Console
    from rich.table import Table

    from meristem.growth.like.config import rows

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
