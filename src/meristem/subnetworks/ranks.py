"""Check that all processes train the same path. Under FSDP2, processes that disagree wait for each other
forever.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist

from meristem.errors import MeristemError
from meristem.subnetworks.path import Path


def check_ranks_agree(paths: Mapping[str, Path], step: int) -> None:
    """Compare the paths of a step over all processes. A single process does nothing.

    Raises:
        MeristemError: on every rank. The message names the ranks that differ from rank 0, and the seeds or
            steps to check.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    gathered: list[tuple[int, dict[str, Path]] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (step, dict(paths)))
    others = [rank for rank, entry in enumerate(gathered) if entry != gathered[0]]
    if others:
        steps = [entry[0] for entry in gathered if entry]
        raise MeristemError(
            f"ranks {others} would train another sub-network than rank 0 (their steps: {steps}); give every process the same "
            "schedule, seed and global optimizer step"
        )
