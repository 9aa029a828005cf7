"""What a training-time method may do to a run of the Trainer."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from meristem.data import Ordered
    from meristem.growth.provenance import Provenance
    from meristem.streams import Streams
    from meristem.subnetworks import Path


@dataclass(frozen=True)
class Setting:
    """The run that a method joins.

    Args:
        steps: optimizer steps.
        batch_size: examples of each step, over all processes.
        micro_batch: examples that one process runs at a time.
        trained: whether the network comes from another node.
        examples: what is read, in the order in which it is read.
        provenance: which entries of the network a growth has added, where one has made it.
        answers: of logits and labels, what is asked for (rows, outputs), and the right answers (rows,).
        example: a batch of one, labels included.
        teacher: the directory of a model to learn from, where the recipe names one.
    """

    steps: int
    batch_size: int
    micro_batch: int
    trained: bool
    streams: Streams
    examples: Ordered
    provenance: Provenance | None = None
    answers: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    example: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: pathlib.Path | None = None


class Modifier:
    """One method in one run. Each of its parts does nothing unless a method says otherwise.

    What it cannot go together with stands in `conflicts.CONFLICTS`, and is refused when the recipe is read.
    """

    name: ClassVar[str]

    def prepare(self, model: nn.Module, setting: Setting) -> nn.Module:
        """The network that is trained, made of the one that the methods before this one have left."""
        return model

    def callbacks(self) -> Sequence[TrainerCallback]:
        """The Trainer's callbacks of this method."""
        return ()

    def paths(self) -> Iterator[Mapping[str, Path]] | None:
        """For the FLOPs: which blocks run in each micro-batch of the run, `batch_size / micro_batch` of them in each step; None: all."""
        return None

    def more_flops(self) -> int:
        """FLOPs of each example beside those of the network that is trained."""
        return 0

    def objective(
        self, loss: Tensor, inputs: Mapping[str, Any], outputs: Any, share: Callable[[int], float | Tensor]
    ) -> Tensor:
        """The loss that is trained on, made of the one that the methods before this one have left. Evaluations keep the task's own.

        Args:
            inputs, outputs: of the network in this micro-batch, labels among the inputs.
            share: of a number of rows, what a mean over them counts in the whole batch: 1, or less where batches are accumulated.
        """
        return loss

    def within(self) -> contextlib.AbstractContextManager[Any]:
        """What lasts as long as the training."""
        return contextlib.nullcontext()

    def saved_as(self, model: nn.Module) -> nn.Module:
        """The network whose class and config the result has, given the one that this method made."""
        return model

    def leave(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The result's tensors, made of those that were trained."""
        return state

    keeps_moments: bool = True  # whether the optimizer's state is that of the result's parameters

    def details(self) -> Mapping[str, Any]:
        """For the node's record."""
        return {}
