"""RAPTR in the Trainer of transformers."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

from transformers import TrainerCallback

from meristem.errors import MeristemError
from meristem.subnetworks.blocks import check_no_dropping, lists_of_blocks, unwrapped
from meristem.subnetworks.gate import Schedules, subnetwork, ungate
from meristem.subnetworks.schedule import SubnetworkSchedule
from meristem.subnetworks.width import hold_unselected


class RaptrCallback(TrainerCallback):
    """Train a sub-network at each optimizer step of a Trainer (RAPTR, arXiv:2402.05913). Evaluation and
    checkpoints use the full network.

        Trainer(..., callbacks=[ms.RaptrCallback(stages=[6, 8, 10, 12])])

    The path follows `state.global_step`, so gradient accumulation, resumed runs and all processes agree.
    After a run that was interrupted, `close()` makes the network whole; the next run does so itself.

    Args:
        schedule: any schedule. Instead of it, give `stages` and further options of `SubnetworkSchedule`. The
            numbers of blocks and of steps are then taken from the run.
        masked_update: leave unselected rows of narrow blocks unchanged (see `ms.hold_unselected`).
        check_ranks: compare the paths of all processes at each step. If they differ, there is an error
            instead of a deadlock.
        options: `stages` and further options of `SubnetworkSchedule`, without `schedule`.

    Raises:
        MeristemError: if neither or both of `schedule` and options are given. When training begins, if the
            schedule does not fit the network or the run, if the model drops layers itself, or if DDP runs
            without `ddp_find_unused_parameters=True`.
    """

    def __init__(
        self,
        schedule: Schedules | None = None,
        *,
        masked_update: bool = True,
        check_ranks: bool = False,
        **options: Any,
    ) -> None:
        if (schedule is None) == (not options):
            raise MeristemError("RaptrCallback needs a schedule, or stages=[...] and further options to make one")
        self._given, self.schedule, self.options = schedule, schedule, options
        self.masked_update, self.check_ranks = masked_update, check_ranks
        self._step = contextlib.ExitStack()
        self._handles: list[Any] = []

    def on_train_begin(self, args, state, control, model: Any = None, optimizer: Any = None, **kwargs) -> None:
        self.close()
        ungate(unwrapped(model))
        check_no_dropping(model)
        if args.parallel_mode.value == "distributed" and args.ddp_find_unused_parameters is not True and not args.fsdp:
            raise MeristemError(
                "under DDP, sub-networks need ddp_find_unused_parameters=True: skipped blocks have no gradient"
            )
        if args.torch_compile:
            warnings.warn(
                "torch_compile compiles the whole network again for every choice of blocks, and gives up after a few; leave it off and "
                "compile the blocks one by one (block.compile())",
                stacklevel=2,
            )
        self.schedule = self._given or self._made(model, state.max_steps, args.seed)
        narrow = any(getattr(s, "widths", None) for s in _each(self.schedule))
        if narrow and self.masked_update and not self._handles:
            self._handles = hold_unselected(getattr(optimizer, "optimizer", optimizer), model)

    def _made(self, model: Any, max_steps: int, seed: int) -> Schedules:
        lists = lists_of_blocks(model)
        first = {"fixed_layers": (0, -1), "seed": seed, **self.options}
        return {
            blocks.axis: SubnetworkSchedule(
                len(blocks.modules), max_steps, **{**first, "fixed_layers": (*first["fixed_layers"], *blocks.needed)}
            )
            for blocks in lists
        }

    def on_step_begin(self, args, state, control, model: Any = None, **kwargs) -> None:
        self._step.close()
        assert self.schedule is not None
        self._step.enter_context(subnetwork(model, self.schedule, state.global_step, check_ranks=self.check_ranks))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._step.close()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.close()

    def close(self) -> None:
        """Make the network whole again, if a run was interrupted."""
        self._step.close()
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _each(schedule: Schedules) -> list[Any]:
    return list(schedule.values()) if isinstance(schedule, dict) else [schedule]
