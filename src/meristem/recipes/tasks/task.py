"""The interface of tasks, and new networks with the head of a task."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from meristem.data import Ordered
from meristem.data.encoding import IGNORED
from meristem.errors import MeristemError, first_line, nearest

Split = Literal["tune", "eval"]


class Task(ABC):
    """The data of a recipe, and what a network learns from them.

    Attributes:
        description: one line for the user.
        fingerprint: a digest of exactly these data, equal on every machine.
        tokens_per_example: the tokens of text in an example, or 0 if there are no tokens.
    """

    description: str
    fingerprint: str
    tokens_per_example: int = 0

    @abstractmethod
    def new_model(self, entries: Mapping[str, Any], seed: int) -> nn.Module:
        """A randomly initialised network from recipe entries, with the head of the task.

        Raises:
            MeristemError: as in `network`.
        """

    @abstractmethod
    def check(self, model: nn.Module, label: str) -> None:
        """Check that the data fit the network.

        Raises:
            MeristemError: if they do not.
        """

    @abstractmethod
    def training_set(self, count: int, seed: int, offset: int) -> Ordered:
        """The next `count` examples after the `offset` that earlier runs have read (see
        `data.order.Order`).
        """

    @abstractmethod
    def evaluation_set(self, split: Split = "eval") -> Ordered:
        """The held-out examples: those for results ("eval"), or those for choices ("tune")."""

    @abstractmethod
    def example(self) -> dict[str, Tensor]:
        """A batch of one example, including labels, on which FLOPs are counted."""

    def answers(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of a batch that the loss uses (rows, outputs), and the right classes (rows,)."""
        labels = labels.flatten()
        asked = labels != IGNORED
        return logits.reshape(len(labels), -1)[asked], labels[asked]

    def trainer_options(self) -> dict[str, Any]:
        """Further arguments of the Trainer, such as metrics."""
        return {}

    def leave(self, directory: Path) -> None:
        """Write the files that a user needs for the inputs of a model next to it. By default there are
        none.
        """
        return None


def network(auto_class: Any, entries: Mapping[str, Any], defaults: Mapping[str, Any], seed: int) -> nn.Module:
    """A randomly initialised network of `auto_class` from recipe entries. `defaults` follow the data, and are
    used if the config has them.

    Raises:
        MeristemError: for an unknown model_type or config key, for a model_type without this task, or for
            values that transformers refuses.
    """
    from transformers import AutoConfig, set_seed
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    own = dict(entries)
    model_type = own.pop("model_type", None)
    if model_type not in CONFIG_MAPPING_NAMES:
        raise MeristemError(f"model_type {model_type!r} is unknown; {nearest(str(model_type), CONFIG_MAPPING_NAMES)}")
    default = AutoConfig.for_model(model_type)
    if type(default) not in auto_class._model_mapping:
        raise MeristemError(
            f"{model_type} has no network for this task: transformers' {auto_class.__name__} knows none"
        )
    known = set(vars(default))
    known |= {"num_labels", "decoder_start_token_id"}  # every config takes them, and few list them
    known |= set(getattr(default, "attribute_map", {}))
    for key, value in own.items():
        if key not in known and not _shapes_follow(auto_class, model_type, own, key, value):
            said = (name for name in known if not name.startswith("_"))
            raise MeristemError(f"{model_type} has no config entry {key!r}; {nearest(key, said)}")
    try:
        other = getattr(default, "attribute_map", {})  # max_position_embeddings is n_positions in GPT-2
        fitting = {key: value for key, value in defaults.items() if key in known and other.get(key) not in own}
        config = AutoConfig.for_model(model_type, **{**fitting, **own})
        if getattr(config, "num_hidden_layers", None) == 0:
            raise MeristemError("a network needs at least one layer, found 0")
        set_seed(seed)
        model = new_of(auto_class, config)
        positions = "max_position_embeddings"
        if positions in fitting and positions not in own and (padding := padding_of_positions(model)) is not None:
            longer = fitting[positions] + padding + 1  # positions are counted from the one after the padding's
            config = AutoConfig.for_model(model_type, **{**fitting, **own, positions: longer})
            set_seed(seed)
            model = new_of(auto_class, config)
        return model
    except Exception as error:
        raise MeristemError(f"{model_type} cannot be built from these entries: {first_line(error)}") from error


def _shapes_follow(auto_class: Any, model_type: str, entries: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether tensors change their shapes with twice this value. Many classes read a `head_dim` that their
    config does not list.
    """
    from transformers import AutoConfig

    def shapes(config: Any) -> dict[str, torch.Size]:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in new_of(auto_class, config).named_parameters()}

    if not isinstance(value, int) or isinstance(value, bool):
        return False
    try:
        given, twice = ({**entries, key: number} for number in (value, 2 * value))
        return shapes(AutoConfig.for_model(model_type, **given)) != shapes(AutoConfig.for_model(model_type, **twice))
    except Exception:  # these entries cannot be built at all
        return False


def new_of(auto_class: Any, config: Any) -> Any:
    """`auto_class.from_config(config)`, also if several classes share a model type (DeiT). transformers then
    looks up the class in the architectures of the config, which a config that was never saved does not have.
    """
    if config.architectures is None:
        config.architectures = []
    return auto_class.from_config(config)


def padding_of_positions(model: nn.Module) -> int | None:
    """The token to which a network with a position table gives no position, as padding (RoBERTa), or None."""
    tables = (m for name, m in model.named_modules() if isinstance(m, nn.Embedding) and "position" in name)
    return next((table.padding_idx for table in tables if table.padding_idx is not None), None)


def class_of(logits: Any) -> Tensor:
    """The logits of a network that returns them alone or before other tensors."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def check_some(examples: int, source: str, split: Split) -> None:
    """Check that a split is not empty.

    Raises:
        MeristemError: if it is.
    """
    if not examples:
        said = {"tune": "tuning", "eval": "evaluation"}[split]
        raise MeristemError(f"{source} is too small to hold out data for {said}; give more, or shorter sequences")


def check_vocabulary(model: nn.Module, vocab_size: int, label: str) -> None:
    """Check that the vocabulary of a model covers the tokens of the data.

    Raises:
        MeristemError: if it is smaller.
    """
    known = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if vocab_size > known:
        raise MeristemError(f"{label}: the data has {vocab_size} tokens, the model's vocabulary {known}")


def check_positions(model: nn.Module, length: int, label: str) -> None:
    """Check that a learned position table covers a sequence.

    Raises:
        MeristemError: if it is shorter.
    """
    for name, table in model.named_modules():
        if not isinstance(table, nn.Embedding) or not re.search(
            r"(^|\.)(wpe|position_embeddings|embed_positions)$", name
        ):
            continue
        known = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        if known < length:
            raise MeristemError(f"{label}: a sequence has {length} tokens, and the model has only {known} positions")


def leave_tokenizer(tokenizer: str, directory: Path) -> None:
    """Write a Hugging Face tokenizer next to a model. Bytes need none."""
    if tokenizer != "bytes":
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False).save_pretrained(directory)
