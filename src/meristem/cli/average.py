"""What `meristem average` does, once its arguments are parsed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from meristem.errors import MeristemError


def average(
    sources: Sequence[str], out: Path, weights: str, max_shard_size: str, overwrite: bool, trust_remote_code: bool
) -> None:
    """See `checkpoints.average`."""
    from meristem.checkpoints.average import SHAPES
    from meristem.checkpoints.average import average as write_average
    from meristem.checkpoints.directory import check_place
    from meristem.cli.commands import quiet
    from meristem.cli.progress import bytes_bar

    if len(sources) < 2:
        raise MeristemError(f"average wants at least two checkpoints and OUT, got {' '.join([*sources, str(out)])}")
    check_place(out, overwrite, sources)
    chosen: str | list[float] = weights
    if weights not in SHAPES:
        try:
            chosen = [float(weight) for weight in weights.split(",")]
        except ValueError as error:
            raise MeristemError(
                f"--weights is one of {', '.join(SHAPES)}, or numbers such as 0.3,0.7; got {weights!r}"
            ) from error
    quiet()
    bar = functools.partial(bytes_bar, f"writing {out}")
    parts = write_average(
        sources,
        out,
        chosen,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        max_shard_size=max_shard_size,
        bar=bar,
    )
    print(f"{out}: the mean of {len(parts)} checkpoints, weights {', '.join(f'{part:.3g}' for part in parts)}")
