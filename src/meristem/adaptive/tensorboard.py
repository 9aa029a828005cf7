"""The records of a search as scalars of TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from meristem.errors import MeristemError


class Scalars:
    """A context that writes the numbers of each record under their paths in it: `objective`,
    `candidates/0/complexity`.

    Args:
        log_dir: the folder that TensorBoard reads. None writes nothing.
        first: the first step that this run writes. Later steps of an earlier run are no longer shown.

    Raises:
        MeristemError: if TensorBoard is not installed.
    """

    def __init__(self, log_dir: str | None, first: int = 0) -> None:
        self._writer = None
        if log_dir is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MeristemError("log_dir needs TensorBoard: pip install 'meristem-nn[tensorboard]'") from None
        self._writer = SummaryWriter(log_dir, purge_step=first)

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """Write the record of a step. Words in it are left out."""
        if self._writer is None:
            return
        for name, value in _numbers(record, ""):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, Mapping | list):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from _numbers(part, f"{name}/{key}" if name else str(key))
