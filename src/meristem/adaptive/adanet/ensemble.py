"""An ensemble of any modules, mixed (Weill et al. 2019), and what proposes its members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from meristem.errors import MeristemError


@dataclass
class Subnetwork:
    """A proposed member of an ensemble.

    Args:
        name: a name that is unique within its round.
        module: a module x -> logits (n, outputs), or x -> (last_layer, logits) for matrix mixtures.
        complexity: r, which enters the price of the member.
        learning_rate: the learning rate of its training.
    """

    name: str
    module: nn.Module
    complexity: float = 0.0
    learning_rate: float = 1e-3

    def say(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """last_layer (n, units) and logits (n, outputs). If the module returns only logits, they are both."""
        said = self.module(x)
        return said if isinstance(said, tuple) else (said, said)


class Generator(Protocol):
    """Proposes sub-networks. It has to propose the same ones, except for random weights, each time it is
    called for a round.
    """

    def __call__(self, round_number: int, ensemble: Ensemble) -> Sequence[Subnetwork]:
        """The proposals of a round, given the ensemble before it."""
        ...


class Ensemble(nn.Module):
    """The mixture of its members: a plain module, x -> outputs (n, outputs).

    Attributes:
        subnetworks: the members.
        mixture_weights: a parameter for each member, shaped as in `fit_mixture`. Gradients do not train them.
    """

    def __init__(self, mixture: str):
        super().__init__()
        self.mixture = mixture
        self.subnetworks: list[Subnetwork] = []
        self.members = nn.ModuleList()
        self.mixture_weights = nn.ParameterList()

    def set_members(self, subnetworks: Sequence[Subnetwork], weights: Sequence[Tensor]) -> None:
        """Replace all members."""
        self.subnetworks = list(subnetworks)
        self.mixture_weights = nn.ParameterList(nn.Parameter(w.detach(), requires_grad=False) for w in weights)
        self.members = nn.ModuleList(sub.module for sub in subnetworks)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed logits (n, outputs).

        Raises:
            MeristemError: if the ensemble has no members.
        """
        total: Tensor | float = 0.0
        for sub, weights in zip(self.subnetworks, self.mixture_weights, strict=True):
            last_layer, logits = sub.say(x)
            weights = weights.to(logits)
            total = total + (last_layer @ weights if self.mixture == "matrix" else logits * weights)
        if not isinstance(total, Tensor):
            raise MeristemError("an ensemble without members has no outputs")
        return total

    def summary(self) -> str:
        """One line for each member: its name, its complexity and |w|_1."""
        pairs = zip(self.subnetworks, self.mixture_weights, strict=True)
        return "\n".join(f"{s.name:<24} r {s.complexity:<10.4g} |w|_1 {float(w.abs().sum()):.4g}" for s, w in pairs)
