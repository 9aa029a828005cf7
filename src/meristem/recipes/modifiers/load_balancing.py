"""The load-balancing loss of a mixture of experts, in a recipe.

Fedus et al.: "Switch Transformers", JMLR 2022, arXiv:2101.03961, equations (4) to (6), computed for each
layer and averaged. (The stock classes pool all layers, so that an unused expert in one layer is hidden by the
expert of the same number in another layer.)
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from meristem.errors import MeristemError
from meristem.growth.methods.more_experts import PER_TOKEN
from meristem.recipes.modifiers.modifier import Modifier, Setting

COEFFICIENT = "router_aux_loss_coef"
ROUTERS = ("router_logits", "encoder_router_logits", "decoder_router_logits")


def balance(logits: Tensor, top: int) -> Tensor:
    """E sum_e f_e P_e, where f_e is the share of tokens that choose expert e, and P_e its mean probability.
    It equals `top` if all experts are chosen equally often.

    Args:
        logits: the logits of the router (tokens, E).
        top: the number of experts for each token.
    """
    probabilities = logits.float().softmax(-1)
    experts = probabilities.shape[-1]
    chosen = probabilities.topk(top).indices.flatten().bincount(minlength=experts) / len(logits)
    return experts * (chosen * probabilities.mean(0)).sum()


class LoadBalancing(Modifier):
    """The loss is that of the task plus `coefficient` times the load-balancing loss.

    A stock class adds such a loss if `output_router_logits` is true. It then counts once for each accumulated
    batch and each process, and also in evaluations. The class's own coefficient is therefore zero here.
    """

    name = "load_balancing"

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def prepare(self, model: nn.Module, setting: Setting) -> nn.Module:
        config: Any = model.config
        if not hasattr(model, COEFFICIENT) or "output_router_logits" not in inspect.signature(model.forward).parameters:
            raise MeristemError(
                f"load_balancing needs a mixture of experts whose class has such a loss; {type(model).__name__} has none"
            )
        self._answers, self._model = setting.answers, model
        top = (getattr(config, name, None) for name in PER_TOKEN)
        self._top = next((count for count in top if isinstance(count, int)), 1)
        config.router_aux_loss_coef = self.coefficient  # for its config: the coefficient of its training
        setattr(model, COEFFICIENT, 0.0)
        self._hook = model.register_forward_pre_hook(_ask_in_training, with_kwargs=True)
        return model

    def objective(
        self, loss: Tensor, inputs: Mapping[str, Any], outputs: Any, share: Callable[[int], float | Tensor]
    ) -> Tensor:
        assert self._answers is not None
        layers = [own for part in ROUTERS for own in outputs.get(part) or ()]
        routers = [own[0] if isinstance(own, tuple) else own for own in layers]
        each = [balance(own.flatten(0, -2), self._top).to(loss.device) for own in routers]
        rows, _ = self._answers(outputs["logits"], inputs["labels"])
        return loss + self.coefficient * sum(each) / len(each) * share(len(rows))

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._hook.remove()
            setattr(self._model, COEFFICIENT, self.coefficient)

    def details(self) -> Mapping[str, Any]:
        return {"load_balancing": self.coefficient}


def _ask_in_training(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "output_router_logits": model.training}
