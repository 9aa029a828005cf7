"""Write a model directory: made next to its place, checked, then renamed."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from meristem.anatomy.streamed import Piece, Weights, weights_of
from meristem.checkpoints.companions import companions, copy_companions
from meristem.checkpoints.directory import atomic_directory, check_place, write_json
from meristem.checkpoints.open_streamed import read_weights, without_weights
from meristem.checkpoints.shards import (
    DEFAULT_SHARD_SIZE,
    Progress,
    Shards,
    Writer,
    check_space,
    lay_out,
    one_thread,
    write_index,
    write_shards,
)
from meristem.checkpoints.shares import Processes, clear_shares, shared_files, write_own_share
from meristem.checkpoints.source import Source
from meristem.checkpoints.stock import Written, groups_to_write
from meristem.checkpoints.stored import StoredTensors
from meristem.errors import MeristemError, first_line


def write_model(
    model: Any,
    out: Path,
    record: dict[str, Any] | Callable[[], dict[str, Any]],
    tokenizer_from: Path | None = None,
    overwrite: bool = False,
    more: Callable[[Path], None] | None = None,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    bar: Callable[[int], AbstractContextManager[Progress]] | None = None,
    sources: Sequence[str | Path] = (),
    trust_remote_code: bool = False,
    processes: Processes | None = None,
    prove: Callable[[], object] | None = None,
) -> tuple[str, ...]:
    """Write a stock transformers directory: config, safetensors files, companions, model card and
    `meristem.json`.

    Weights are computed, converted and written tensor by tensor, so a streamed model needs no more memory
    than its largest tensor.

    Args:
        model: the model, in memory or streamed.
        out: the directory to write.
        record: the content of `meristem.json` (method, options, source, certificate), or a function that
            returns it when it is needed.
        tokenizer_from: a model directory whose tokenizer and other companions are copied unchanged (see
            `companions`).
        overwrite: replace `out`, if Meristem or `save_pretrained` wrote everything in it.
        more: a function that writes further files into the directory before it appears.
        max_shard_size: the largest size of a weight file, such as "5GB".
        bar: a context that is opened with the number of bytes to write. It yields a function that is called
            with the number of bytes just written.
        sources: what the model is read from, so that `out` is not written over it.
        trust_remote_code: copy code from there too. The code of the model's own class is always written.
        processes: who writes the weights. This process alone by default. A rank other than 0 writes its own
            files only.
        prove: a function that is called while the weights are written, before `record`. The weights of a
            streamed model that it computes are not computed again.

    Returns:
        What `tokenizer_from` holds that was left behind.

    Raises:
        MeristemError: if `out` may not be written, if the disk is full, or if stock transformers would not
            find every tensor in the files.
    """
    groups, shards = plan_files(model, max_shard_size)
    place = check_place(out, overwrite, sources)
    check_space(place, shards.bytes)
    if processes is not None and processes.rank:
        write_own_share(place, shards, groups, model, processes, sources)
        return ()
    with atomic_directory(out, overwrite, sources) as partial:
        save_all_but_weights(model, partial)
        with _weight_writer(place, model, groups, shards, processes, sources, prove) as write:
            with bar(shards.bytes) if bar else contextlib.nullcontext() as progress:
                write(partial, progress)
            write_index(partial, shards, model.num_parameters())
            left = _copy_beside(model, partial, tokenizer_from, trust_remote_code)
            _describe(partial, record, tokenizer_from, sources)
            if more is not None:
                more(partial)
            check_written(model, partial)
    return left


@contextlib.contextmanager
def _weight_writer(
    place: Path,
    model: Any,
    groups: Sequence[Written],
    shards: Shards,
    processes: Processes | None,
    sources: Sequence[str | Path],
    prove: Callable[[], object] | None,
) -> Iterator[Callable[[Path, Progress | None], None]]:
    """A context with a function that writes all weight files into a directory. At its end, what several
    processes left next to `place` is removed.
    """
    if processes is None:
        clear_shares(place)
        yield functools.partial(_write_alone, model, groups, shards, prove)
        return
    if prove is not None:
        prove()
    with shared_files(place, shards, groups, model, processes, sources) as write:
        yield write


def _copy_beside(model: Any, directory: Path, tokenizer_from: Path | None, trust_remote_code: bool) -> tuple[str, ...]:
    """Copy the companions of the source's weights. Returns what was left behind."""
    if tokenizer_from is None:
        return ()
    beside = companions(tokenizer_from, trust_remote_code or _has_own_code(model), directory)
    copy_companions(tokenizer_from, directory, beside.copied)
    return beside.left


def _describe(
    directory: Path,
    record: dict[str, Any] | Callable[[], dict[str, Any]],
    tokenizer_from: Path | None,
    sources: Sequence[str | Path],
) -> None:
    """Write `meristem.json` and the model card."""
    from meristem.checkpoints.card import model_card

    record = record() if callable(record) else record
    write_json(directory / "meristem.json", record)
    origins = [Path(origin) for origin in (*([tokenizer_from] if tokenizer_from else []), *sources)]
    (directory / "README.md").write_text(model_card(record, origins))


def _write_alone(
    model: Any,
    groups: Sequence[Written],
    shards: Shards,
    prove: Callable[[], object] | None,
    directory: Path,
    progress: Progress | None,
) -> None:
    """Write all weights, first those that `prove` computes, when it computes them."""
    weights = weights_of(model)

    def rest(written: set[str]) -> Iterator[tuple[str, Piece]]:
        return (piece for group in groups if not written & set(group.layout) for piece in group.pieces(model, weights))

    if prove is None or not isinstance(weights, Weights):
        if prove is not None:
            prove()
        write_shards(directory, shards, rest(set()), progress)
        return
    on_disk = {group.names[0]: name for group in groups if group.direct for name in group.layout}
    written: set[str] = set()
    with Writer(directory, shards, progress) as writer:

        def write(name: str, tensor: Tensor) -> None:
            file_name = on_disk.get(name)
            if file_name is not None and file_name not in written and weights.span(name) is None:
                written.add(file_name)
                writer.put((file_name, ([0], tensor.contiguous())))

        with weights.told(write):
            prove()
        with one_thread():
            for piece in rest(written):
                writer.put(piece)


def _has_own_code(model: Any) -> bool:
    """Whether its class came with a checkpoint, which the user trusted."""
    return type(model).__module__.startswith("transformers_modules.")


def check_written(model: Any, directory: Path) -> None:
    """Check that every tensor of the model is where stock transformers looks for it. The model's own class
    and config class decide that, so that nothing in the directory is run.

    Raises:
        MeristemError: if a tensor is missing or does not belong to the model. The message names it.
    """
    source = Source(str(directory), directory)
    try:
        config = type(model.config).from_pretrained(directory)
    except Exception as error:
        raise MeristemError(f"the new config cannot be read again: {first_line(error)}") from error
    read_weights(without_weights(type(model), config, source), StoredTensors(directory), source)


def plan_files(model: Any, max_shard_size: str | int = DEFAULT_SHARD_SIZE) -> tuple[list[Written], Shards]:
    """What `write_model` writes, in its order, and the files of it.

    Raises:
        MeristemError: if the size is not like "5GB".
    """
    groups = groups_to_write(model)
    return groups, lay_out({name: like for group in groups for name, like in group.layout.items()}, max_shard_size)


def save_all_but_weights(model: Any, directory: Path) -> None:
    """Write the config, the generation config and the code of a custom model, as stock `save_pretrained`
    does.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of no shards
    try:
        model.save_pretrained(directory, state_dict={})
    finally:
        if shown:
            logging.enable_progress_bar()
    _name_code_here(directory)


def _name_code_here(directory: Path) -> None:
    """Code of another repository (`owner/name--file.Class`) that is written here is named as a file of this
    directory.
    """
    config = json.loads((directory / "config.json").read_text())
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict):
        return
    for key, reference in auto_map.items():
        local = reference.rpartition("--")[2] if isinstance(reference, str) else ""
        if local != reference and (directory / f"{local.partition('.')[0]}.py").exists():
            auto_map[key] = local
    write_json(directory / "config.json", config)
