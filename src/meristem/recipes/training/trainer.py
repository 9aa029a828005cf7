"""transformers' Trainer with the changes that a train node needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from meristem.errors import MeristemError, first_line
from meristem.growth.optimizers.optimizer import scaled_groups
from meristem.growth.optimizers.optimizer_families import family_of
from meristem.recipes.modifiers import Modifier
from meristem.recipes.specs.guard_specs import SpikesSpec
from meristem.recipes.training.guards import LossGuard
from meristem.recipes.training.spikes import Spikes


class NodeArguments(TrainingArguments):
    """One device for each process. (A Trainer divides a single process among all visible GPUs by
    nn.DataParallel. Its batches are then larger by the number of GPUs, so that a run would differ between
    machines.)
    """

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class NodeTrainer(Trainer):
    """A Trainer with learning rates by parameter, as a growth or the recipe defines them, and a guard that
    checks every loss.
    """

    def __init__(
        self,
        *args: Any,
        amplitudes: Mapping[str, tuple[float, float]],
        rates: Mapping[str, float],
        guard: LossGuard,
        spikes: SpikesSpec | None = None,
        modifiers: Sequence[Modifier] = (),
        **kwargs: Any,
    ) -> None:
        self._amplitudes, self._rates, self._guard, self._modifiers = amplitudes, rates, guard, modifiers
        self.spikes = Spikes(spikes, self._mean, guard.end) if spikes else None
        super().__init__(*args, **kwargs)
        if self.spikes:
            self.add_callback(self.spikes)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._guard.see(loss, self.state.global_step + 1)
        if self.spikes:
            self.spikes.see(loss)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the task. In training, the methods of the run change it."""
        if not model.training and self._adds_router_loss():
            inputs = {**inputs, "output_router_logits": False}  # balances experts, and is not part of the measured loss
        given = dict(inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

        def share(rows: int) -> Any:
            return rows * processes / num_items_in_batch if counted else 1.0  # type: ignore[operator]

        for modifier in self._modifiers if model.training else ():
            loss = modifier.objective(loss, given, outputs, share)
        return (loss, outputs) if return_outputs else loss

    def _adds_router_loss(self) -> bool:
        """Whether the config of the network requests the load-balancing loss in every forward pass."""
        config = getattr(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), "config", None)
        return bool(getattr(config, "output_router_logits", False))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save a checkpoint with the names that tensors have in memory. (transformers writes the names of the
        Hub, and looks for those in memory when it resumes. For the blocks of a ViT or the experts of a
        mixture it finds none, and continues with their untrained values; huggingface/transformers#48805.)
        """
        own = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(own, PreTrainedModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            place = output_dir or self.args.output_dir
            assert place is not None
            own.save_pretrained(place, state_dict=state_dict, save_original_format=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Check that no trained tensor is missing from the checkpoint.

        Raises:
            MeristemError: if one is missing or unknown.
        """
        lacking = set(load_result.missing_keys) - set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
        state = self.model.state_dict(keep_vars=True)  # type: ignore[union-attr]
        found = {
            id(tensor) for name, tensor in state.items() if name not in lacking
        }  # tied: one tensor of several names
        lost = sorted(name for name in lacking if id(state[name]) not in found)
        odd = lost or load_result.unexpected_keys
        if odd:
            raise MeristemError(
                f"the checkpoint to resume has {'no' if lost else 'an unknown'} tensor {odd[0]!r} ({len(odd)} such); "
                f"remove {self.args.output_dir} to train the node again"
            )

    def _mean(self, loss: torch.Tensor) -> torch.Tensor:
        """The mean over all processes."""
        return self.accelerator.reduce(loss, "mean")  # type: ignore[return-value]

    def create_optimizer(self, *args: Any, **kwargs: Any):
        try:
            optimizer = super().create_optimizer(*args, **kwargs)
        except ImportError as error:  # of a package that transformers has optimizers from
            raise MeristemError(f"trainer: optim {self.args.optim}: {first_line(error)}") from error
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self._amplitudes:
            _regroup(optimizer, scaled_groups(optimizer.param_groups, model, self._amplitudes, family_of(optimizer)))
        if self._rates:
            _regroup(optimizer, with_rates(optimizer.param_groups, model, self._rates))
        return optimizer


def _regroup(optimizer: Any, groups: Sequence[dict[str, Any]]) -> None:
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group(group)


def with_rates(
    groups: Sequence[Mapping[str, Any]], model: nn.Module, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Parameter groups, split so that the learning rate of each parameter is multiplied by the factor of the
    first pattern that matches a part of its name.

    Raises:
        MeristemError: for a pattern that matches no parameter's name.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    idle = [pattern for pattern in rates if not any(re.search(pattern, name) for name in names.values())]
    if idle:
        raise MeristemError(
            f"learning_rates: no parameter's name matches {idle[0]!r}; names are such as {next(iter(names.values()))!r}"
        )
    split: dict[tuple[int, float], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            name = names[id(parameter)]
            factor = next((rate for pattern, rate in rates.items() if re.search(pattern, name)), 1.0)
            scaled = {key: group[key] * factor for key in ("lr", "initial_lr") if key in group}
            split.setdefault((number, factor), {**group, **scaled, "params": []})["params"].append(parameter)
    return list(split.values())
