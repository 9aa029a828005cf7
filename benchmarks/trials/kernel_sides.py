"""What trains a network of a given size: Majority Kernels, a plain network, and what could explain a gain of kernels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import meristem as ms
from benchmarks.trials.data import augmented

KERNELS = 3
Examples = tuple[Tensor, Tensor]


Units = tuple[list[nn.Linear], nn.Linear]  # what computes a layer's hidden units, and what reads them


@dataclass(frozen=True)
class Problem:
    """Networks and what they are asked.

    Args:
        new: (seed, dropout) -> a network; torch is seeded with it, too. answers: (network, x) -> logits (N, classes, ...) for labels (N, ...).
        wider, units: (seed, factor) -> a network whose hidden layers alone are so many times wider; those layers, first to last. None where that
            is not to be had.
        head: the path of a layer that stays single (a language model's is known without).
    """

    new: Callable[[int, float], nn.Module]
    answers: Callable[[nn.Module, Tensor], Tensor]
    wider: Callable[[int, int], nn.Module] | None = None
    units: Callable[[nn.Module], list[Units]] = lambda model: []
    head: str | None = None


def own_layers(model: nn.Module, head: str | None = None) -> list[nn.Module]:
    """The layers that kernels are for: linear and convolutional, without the head."""
    out = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer is not out and path != head
    ]


class Sides:
    """How each side trains a network of the same deployed size. A side is a function (rate, seed) -> network."""

    def __init__(self, problem: Problem, setting: dict[str, Any], train: Examples) -> None:
        self.problem, self.setting, self.examples = problem, setting, train

    def new(self, seed: int, dropout: float = 0.0) -> Any:
        torch.manual_seed(seed)
        return self.problem.new(seed, dropout).to(self.examples[0].device)

    def wider(self, seed: int, factor: int) -> Any:
        assert self.problem.wider is not None
        torch.manual_seed(seed)
        return self.problem.wider(seed, factor).to(self.examples[0].device)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.problem.answers(model, x), y)

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The batch as this setting changes it."""
        names = self.setting.get("augment", ())
        return augmented(x, names, generator) if names else x

    @property
    def batches(self) -> list[Tensor]:
        """Inputs on which batch norms take their statistics anew."""
        return list(self.examples[0][:2_000].split(200))

    def fit(
        self,
        model: nn.Module,
        rate: float,
        seed: int,
        loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
        before: Callable[[int], None] = lambda step: None,
        after: Callable[[int], None] = lambda step: None,
        sharpness: float = 0.0,
    ) -> nn.Module:
        """AdamW under a cosine, warmed up as the setting says; the same batches for every side of a seed. `sharpness` is SAM's rho."""
        loss = loss or self.loss
        x, y = self.examples
        rng = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        steps, warmup = self.setting["steps"], self.setting.get("warmup_steps", 0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        model.train()
        for step in range(steps):
            picked = torch.randint(len(x), (self.setting["batch_size"],), generator=rng)
            inputs, labels = self.augment(x[picked], rng), y[picked]
            before(step)
            optimizer.zero_grad()
            loss(model, inputs, labels).backward()
            if sharpness:
                parameters = [p for p in model.parameters() if p.grad is not None]
                norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
                shifts = [sharpness * p.grad / (norm + 1e-12) for p in parameters if p.grad is not None]
                for p, shift in zip(parameters, shifts, strict=True):
                    p.data += shift
                optimizer.zero_grad()
                loss(model, inputs, labels).backward()
                for p, shift in zip(parameters, shifts, strict=True):
                    p.data -= shift
            optimizer.step()
            schedule.step()
            after(step)
        return model.eval()

    def plain(self, rate: float, seed: int) -> nn.Module:
        return self.fit(self.new(seed), rate, seed)

    def k_times_wider(self, rate: float, seed: int, kernels: int = KERNELS) -> nn.Module:
        """The ceiling: the network whose hidden layers are k times as wide, trained and deployed as it is."""
        return self.fit(self.wider(seed, kernels), rate, seed)

    def kernels(self, rate: float, seed: int, kernels: int = KERNELS, **options: Any) -> nn.Module:
        single = {"exclude": re.escape(self.problem.head)} if self.problem.head else {}
        many = ms.majority(self.new(seed), kernels=kernels, seed=seed, **single, **options)
        self.fit(many, rate, seed, before=lambda step: ms.mix_kernels(many, step, self.setting["steps"]))
        return ms.deploy(many, self.batches).eval()

    def layer_kernels(self, rate: float, seed: int) -> nn.Module:
        return self.kernels(rate, seed, granularity="layer")

    def mean_only(self, rate: float, seed: int) -> nn.Module:
        """Three kernels that are never mixed at random: their mean throughout, at the deployed network's scale."""
        return self.kernels(rate, seed, epsilon=0.0, gain="deployed")

    def larger_init(self, rate: float, seed: int) -> nn.Module:
        """Plain, starting at the scale that kernels with gain "deployed" have while they are single."""
        model = self.new(seed)
        for layer in own_layers(model, self.problem.head):
            layer.weight.data *= KERNELS**0.5
        return self.fit(model, rate, seed)

    def ema(self, rate: float, seed: int) -> nn.Module:
        model = self.new(seed)
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        )
        self.fit(model, rate, seed, after=lambda step: average.update_parameters(model))
        torch.optim.swa_utils.update_bn(self.batches, average.module)
        return average.module.eval()

    def sam(self, rate: float, seed: int) -> nn.Module:
        return self.fit(self.new(seed), rate, seed, sharpness=0.05)

    def dropout(self, rate: float, seed: int) -> nn.Module:
        return self.fit(self.new(seed, dropout=0.1), rate, seed)

    def weight_noise(self, rate: float, seed: int) -> nn.Module:
        """Normal noise of the variance that mixing three independent kernels has at the start, annealed alike."""
        model, steps = self.new(seed), self.setting["steps"]
        matrices = [layer.weight for layer in own_layers(model, self.problem.head)]
        share = ((KERNELS - 1) / (KERNELS * (KERNELS + 1))) ** 0.5  # of a kernel's standard deviation, alpha = 1
        scales = [share * float(p.detach().std()) for p in matrices]
        rng, noise = torch.Generator().manual_seed(seed), []

        def before(step: int) -> None:
            level = min(1.0, (steps - step) / (0.2 * steps))
            draws = [torch.randn(p.shape, generator=rng).to(p.device) for p in matrices]
            noise[:] = [level * s * d for d, s in zip(draws, scales, strict=True)]
            for p, n in zip(matrices, noise, strict=True):
                p.data += n

        # the noise is taken away after the gradient, before the step
        def loss(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            self.loss(m, x, y).backward()
            for p, n in zip(matrices, noise, strict=True):
                p.data -= n
            return torch.zeros((), requires_grad=True) * 0

        return self.fit(model, rate, seed, loss=loss, before=before)

    def distilled_ensemble(self, rate: float, seed: int) -> nn.Module:
        """Three plain networks teach one: half the loss is cross-entropy, half divergence from their mean at temperature 2."""
        teachers = [self.fit(self.new(1000 * (i + 1) + seed), rate, 1000 * (i + 1) + seed) for i in range(KERNELS)]

        def loss(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                taught = torch.stack([F.softmax(self.problem.answers(t, x) / 2, 1) for t in teachers]).mean(0)
            out = self.problem.answers(m, x)
            divergence = F.kl_div(F.log_softmax(out / 2, 1), taught, reduction="none").sum(1).mean()
            return 0.5 * F.cross_entropy(out, y) + 0.5 * 4 * divergence

        return self.fit(self.new(seed), rate, seed, loss=loss)

    def submodular(self, rate: float, seed: int) -> nn.Module:
        """Hidden layers three times as wide for half the steps, then each one's units by greedy facility location, then the other half."""
        half = Sides(self.problem, {**self.setting, "steps": self.setting["steps"] // 2}, self.examples)
        small, wide = self.new(seed), half.fit(self.wider(seed, KERNELS), rate, seed)
        for (makers, reader), (targets, _) in zip(self.problem.units(wide), self.problem.units(small), strict=True):
            count = targets[0].out_features
            chosen, nearest = facility_location(torch.cat([maker.weight.detach() for maker in makers], 1), count)
            for maker in makers:
                maker.weight.data = maker.weight.data[chosen]
                if maker.bias is not None:
                    maker.bias.data = maker.bias.data[chosen]
            merged = F.one_hot(nearest, count).to(reader.weight)  # outgoing weights merge into the representative
            reader.weight.data = reader.weight.data @ merged
        small.load_state_dict(wide.state_dict())
        return half.fit(small, rate, seed + 500)


def facility_location(units: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Greedy maximisation of sum_i max_{j in S} cos(unit_i, unit_j): (chosen, for each unit its representative in `chosen`)."""
    similarity = F.normalize(units, dim=1) @ F.normalize(units, dim=1).T
    best = torch.full((len(units),), -1.0, device=units.device)
    chosen: list[int] = []
    for _ in range(count):
        gains = (similarity - best[:, None]).clamp(min=0).sum(0)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        best = torch.maximum(best, similarity[:, chosen[-1]])
    picked = torch.tensor(chosen)
    return picked, similarity[:, picked].argmax(1)
