"""The hooks by which a training-time method changes a run of the Trainer."""

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
        steps: the number of optimizer steps.
        batch_size: the number of examples in a step, over all processes.
        micro_batch: the number of examples that a process runs at a time.
        trained: whether the network comes from another node.
        streams: the seeds of all random numbers.
        examples: the examples, in the order in which they are read.
        provenance: the entries of the network that a growth has added, if there was a growth.
        answers: a function of logits and labels, which returns the outputs that the loss uses (rows, outputs)
            and the right classes (rows,).
        example: a batch of one example, including labels.
        teacher: the directory of a model to learn from, if the recipe names one.
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
    """One method in one run. A hook does nothing unless the method overrides it.

    `conflicts.CONFLICTS` lists the features with which a method cannot be combined. They are refused when the
    recipe is read.
    """

    name: ClassVar[str]

    def prepare(self, model: nn.Module, setting: Setting) -> nn.Module:
        """The network that is trained, made from the network that the methods before this one returned."""
        return model

    def callbacks(self) -> Sequence[TrainerCallback]:
        """The Trainer callbacks of this method."""
        return ()

    def paths(self) -> Iterator[Mapping[str, Path]] | None:
        """The blocks that run in each micro-batch, to count FLOPs. There are `batch_size / micro_batch`
        entries for each step. None: all blocks run.
        """
        return None

    def more_flops(self) -> int:
        """The FLOPs of each example in addition to those of the trained network."""
        return 0

    def objective(
        self, loss: Tensor, inputs: Mapping[str, Any], outputs: Any, share: Callable[[int], float | Tensor]
    ) -> Tensor:
        """The training loss, made from the loss that the methods before this one returned. Evaluations use
        the loss of the task.

        Args:
            loss: the loss of the methods before this one.
            inputs, outputs: the inputs, including labels, and outputs of the network in this micro-batch.
            share: a function of a number of rows: the weight of a mean over them in the whole batch. It is 1,
                or less if batches are accumulated.
        """
        return loss

    def within(self) -> contextlib.AbstractContextManager[Any]:
        """A context that is entered for the whole training."""
        return contextlib.nullcontext()

    def saved_as(self, model: nn.Module) -> nn.Module:
        """The network whose class and config the result has, given the network that this method made."""
        return model

    def leave(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors of the result, made from those that were trained."""
        return state

    keeps_moments: bool = True  # whether the optimizer's state is that of the result's parameters

    def details(self) -> Mapping[str, Any]:
        """Entries for the record of the node."""
        return {}
