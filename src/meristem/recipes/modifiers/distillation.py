"""Distillation in a recipe: a network learns from the outputs of another network as well as from the data.

Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531 (section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from meristem.anatomy.flops import forward_flops
from meristem.checkpoints import open_model
from meristem.errors import MeristemError
from meristem.recipes.modifiers.modifier import Modifier, Setting

if TYPE_CHECKING:
    from meristem.recipes.specs.method_specs import DistillSpec


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The sum over rows of T^2 KL(softmax(teacher / T) || softmax(student / T)). The factor T^2 keeps the
    size of the gradients equal for all T.

    Args:
        student, teacher: the logits (rows, classes).
        temperature: T.
    """
    ours, theirs = (functional.log_softmax(logits.float() / temperature, -1) for logits in (student, teacher))
    return temperature**2 * functional.kl_div(ours, theirs, reduction="sum", log_target=True)


class Distill(Modifier):
    """The loss is (1 - weight) times the loss of the task plus weight times the distance from the teacher's
    outputs.
    """

    name = "distill"

    def __init__(self, spec: DistillSpec) -> None:
        self.spec = spec

    def prepare(self, model: nn.Module, setting: Setting) -> nn.Module:
        assert setting.teacher is not None
        self._answers = setting.answers
        self._teacher = open_model(str(setting.teacher)).float().eval().requires_grad_(False)
        self._teacher.config.use_cache = False  # with a cache, positions do not tell documents apart
        with torch.no_grad():
            classes = [net(**setting.example)["logits"].shape[-1] for net in (model.eval(), self._teacher)]
        model.train()
        if classes[0] != classes[1]:
            raise MeristemError(
                f"distill: {self.spec.teacher!r} has {classes[1]} possible answers, and the trained network {classes[0]}; a teacher "
                "needs the same vocabulary or classes"
            )
        self._flops = forward_flops(self._teacher, setting.example)
        return model

    def more_flops(self) -> int:
        """The FLOPs of the teacher's forward pass."""
        return self._flops

    def objective(
        self, loss: Tensor, inputs: Mapping[str, Any], outputs: Any, share: Callable[[int], float | Tensor]
    ) -> Tensor:
        labels, logits = inputs["labels"], outputs["logits"]
        if next(self._teacher.parameters()).device != logits.device:
            self._teacher.to(logits.device)
        assert self._answers is not None
        with torch.no_grad():
            theirs, _ = self._answers(self._teacher(**inputs)["logits"], labels)
        ours, _ = self._answers(logits, labels)
        soft = soft_loss(ours, theirs, self.spec.temperature) / max(1, len(ours)) * share(len(ours))
        return (1 - self.spec.weight) * loss + self.spec.weight * soft

    def details(self) -> Mapping[str, Any]:
        return {"distill": self.spec.model_dump(), "teacher_flops": self._flops}
